"""One rank's state on Neuron: to host memory, and back. Tensors only; nothing here knows of torch_xla."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trainer.engines.state import Tensors

STEP, MASTER = "step", "master"


def trained_weights(model: nn.Module) -> Tensors:
    """This rank's trained parameters by name, tied ones once. Not copies. An adapter's names are those that it is saved
    by, without its own name in them."""
    return {name.replace(".default.", "."): p.detach() for name, p in model.named_parameters() if p.requires_grad}


def optimizer_tensors(optimizer: Any, model: nn.Module) -> Tensors:
    """The state of the optimizer as "<parameter>.<key>", and under ZeRO-1 the fp32 master weights. Not copies.

    ``optimizer`` is torch's, or ZeRO-1's around one (``base_optimizer``) that updates this rank's part of a parameter.
    """
    found: Tensors = {}
    for name, part, base in parts(optimizer, model):
        for key, value in base.state.get(part, {}).items():
            found[f"{name}.{key}"] = value if torch.is_tensor(value) else torch.tensor(value)
        if base is not optimizer:
            found[f"{name}.{MASTER}"] = part.detach()
    return found


def restore_optimizer(optimizer: Any, model: nn.Module, stored: Tensors) -> None:
    """Put the state back, in place. Learning rate, betas and weight decay stay those of the configuration.

    Raises KeyError when the state is of other parameters.
    """
    left = dict(stored)
    for name, part, base in parts(optimizer, model):
        if base is not optimizer:
            with torch.no_grad():
                part.copy_(left.pop(f"{name}.{MASTER}"))
        keys = [full for full in left if full.rpartition(".")[0] == name]
        # torch keeps the count of steps on the host.
        state = {full.rpartition(".")[2]: left.pop(full) for full in keys}
        base.state[part] = {key: value if key == STEP else value.to(part.device) for key, value in state.items()}
    if left:
        raise KeyError(f"state of other parameters: {sorted(left)[:3]}")


def parts(optimizer: Any, model: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """Name of each trained parameter, what the optimizer updates for it on this rank, and the optimizer that does."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    base = getattr(optimizer, "base_optimizer", optimizer)
    for whole, split in zip(optimizer.param_groups, base.param_groups, strict=True):
        for parameter, part in zip(whole["params"], split["params"], strict=True):
            yield names[id(parameter)], part, base
