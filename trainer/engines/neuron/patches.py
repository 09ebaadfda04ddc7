"""What optimum-neuron 0.4.5 does wrongly without a word, mended. Each mend is of one source text: where that text is
another one, nothing is patched blindly, and the run is refused.

1. With sequence parallelism each tensor-parallel rank sees its part of the sequence, so gradients of parameters that
   all ranks hold must be summed over them. Norms are marked for that, replicated halves of LoRA layers are not:
   ``mark_replicated`` marks them.
2. With ZeRO-1 and fp32 gradient accumulation a hook moves ``grad`` to ``main_grad``, and the sum over the ranks is made
   of ``grad``, which is None by then: ``reduce_sequence_parallel_gradients`` takes the one that is there.
3. The schedule is made for the optimizer that ZeRO-1 then replaces. ZeRO-1 begins with the same parameter groups, but
   accelerate loads its state into it, which makes new ones: the learning rate stays that of the first step, 0 with a
   warm-up. ``set_learning_rates`` tells the optimizer that is used.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from launcher.errors import TrntuneError
from launcher.neuron.libraries import VERSION

# Of the functions and classes that the mends replace or rely on.
FINGERPRINTS = {
    "optimum.neuron.accelerate.optimizer.allreduce_sequence_parallel_gradients": "27763cfd2ca484fd",
    "optimum.neuron.accelerate.optimizer.NeuronAcceleratedOptimizer": "4ebca3062ecd1425",
    "optimum.neuron.accelerate.accelerator.NeuronAccelerator._prepare_optimizer_for_zero_1": "cae6f32f201dfb97",
    "optimum.neuron.peft.tuners.lora.layer.NeuronLoraLayer.update_layer": "688b3159b96dcf70",
    "optimum.neuron.peft.tuners.lora.layer.GQAQKVColumnParallelLinear.update_layer": "9b0d8c09c7234dcd",
    "optimum.neuron.trainers.transformers.NeuronTrainer._train": "5eb3f07aaa9ae979",
    "optimum.neuron.trainers.transformers.NeuronTrainer.setup_training": "e5f64add27578c50",
}


def fingerprint(source: str) -> str:
    """16 digits of the code, whatever its comments, docstrings and layout."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def named(name: str) -> Any:
    """The object of a dotted name: a module, then attributes in it."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def check(found: Callable[[str], Any]) -> None:
    """Raise TrntuneError unless this is the source that the mends were written for: launcher.neuron.libraries has seen
    that it is the version. ``found`` gives the object of a dotted name.
    """
    for name, expected in FINGERPRINTS.items():
        if fingerprint(inspect.getsource(found(name))) != expected:
            raise TrntuneError(
                f"{name} is not that of optimum-neuron {VERSION}, which this engine mends: install it again"
            )


def mark_replicated(model: nn.Module) -> list[str]:
    """Mark trainable parameters that every tensor-parallel rank holds: their gradients are then summed over the ranks.

    Returns their names.
    """
    replicated = [(name, p) for name, p in model.named_parameters() if p.requires_grad and not is_split(p)]
    for _, parameter in replicated:
        parameter.sequence_parallel_enabled = True  # type: ignore[attr-defined]
    return [name for name, _ in replicated]


def is_split(parameter: torch.Tensor) -> bool:
    """True for a parameter of which each tensor-parallel rank has another part."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def partial_gradients(parameters: Iterable[Any]) -> list[torch.Tensor]:
    """Gradients that are one rank's share of a sum over the tensor-parallel ranks."""
    marked = [p for p in parameters if getattr(p, "sequence_parallel_enabled", False)]
    gradients = [p.grad if p.grad is not None else getattr(p, "main_grad", None) for p in marked]
    return [gradient.data for gradient in gradients if gradient is not None]


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: list[float]) -> None:
    """Give each parameter group the learning rate that the schedule has for it."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def reduce_sequence_parallel_gradients(optimizer: torch.optim.Optimizer, reduce: Callable[[torch.Tensor], Any]) -> None:
    """Sum the gradients of replicated parameters over the tensor-parallel ranks, in place, wherever they are kept."""
    for gradient in partial_gradients(p for group in optimizer.param_groups for p in group["params"]):
        reduce(gradient)
