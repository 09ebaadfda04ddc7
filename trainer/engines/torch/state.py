"""The torch engine's state: to host memory, and back. Files: weights, optimizer, the random generators of each rank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from launcher.model_dir.rotary import with_both
from trainer.engines.state import Tensors, adapter_document, copied
from trainer.engines.torch.parts import local, part_like
from trainer.libraries.transformers_versions import NAMES_AS_IN_THE_MODEL
from trainer.models.adapt import left_out

OPTIMIZER, BEST = "optimizer.safetensors", "best.safetensors"
# As Hugging Face names them: every checkpoint's weights/ can be loaded by peft or transformers as it is.
ADAPTER, MODEL = "weights/adapter_model.safetensors", "weights/model.safetensors"
ADAPTER_CONFIG, MODEL_CONFIG = "weights/adapter_config.json", "weights/config.json"


def live_weights(model: PreTrainedModel | PeftModel) -> Tensors:
    """The tensors that training changes, under the names that they are saved by; tied ones once. Not copies."""
    if isinstance(model, PeftModel):
        # "auto" asks the Hub whether the base's vocabulary was resized.
        found: Tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {**found, **dict(left_out(model, found))}
    distinct: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        distinct.setdefault(id(tensor), (name, tensor))
    return {name: tensor.detach() for name, tensor in distinct.values()}


def save_weights(
    model: PreTrainedModel | PeftModel, directory: Path, tensors: Tensors | None = None, from_host: bool = False
) -> None:
    """As peft and transformers save; an adapter with everything that was trained. ``tensors`` in place of a model's;
    ``from_host``: the libraries get copies of the model's, since they ask where tensors lie in memory."""
    names = {} if tensors is None else NAMES_AS_IN_THE_MODEL
    if tensors is None and from_host:
        tensors = host_copies(model)
    model.save_pretrained(str(directory), state_dict=tensors, **names)
    if isinstance(model, PeftModel) and any(
        left_out(model, get_peft_model_state_dict(model, save_embedding_layers=False))
    ):
        save_file(copied(live_weights(model)), directory / Path(ADAPTER).name, metadata={"format": "pt"})


def weights_file(model: PreTrainedModel | PeftModel) -> str:
    return ADAPTER if isinstance(model, PeftModel) else MODEL


def config_document(model: PreTrainedModel | PeftModel, base: Mapping[str, Any]) -> tuple[str, Any]:
    """The configuration that belongs beside the weights: file name and JSON value; ``base`` is the config.json that the
    model was loaded with."""
    if isinstance(model, PeftModel):
        return ADAPTER_CONFIG, adapter_document(model.peft_config["default"])
    return MODEL_CONFIG, with_both(json.loads(model.config.to_json_string(use_diff=True)), base)


def host_copies(model: nn.Module) -> Tensors:
    """A model's tensors by the names that it is saved by, those that are saved in host memory: all, or an adapter's,
    since its base stays where it is. Tied ones stay one."""
    found, whole = model.state_dict(keep_vars=True), not isinstance(model, PeftModel)
    copies = {id(tensor): tensor.detach().cpu() for tensor in found.values() if whole or tensor.requires_grad}
    return {name: copies.get(id(tensor), tensor.detach()) for name, tensor in found.items()}


def first_numbers(found: Tensors) -> Tensors:
    """The first number of each tensor, by the names that a model is saved by, in the storage of the whole: what shares
    one still does."""
    return {name: tensor.detach().as_strided((min(1, tensor.numel()),), (1,)) for name, tensor in found.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> Tensors:
    """This rank's part of the optimizer's state as "<parameter>.<key>". Not copies."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            found[f"{names[id(parameter)]}.{key}"] = local(value) if torch.is_tensor(value) else torch.tensor(value)
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, stored: Tensors) -> None:
    """Put the state back. Learning rate, betas and weight decay stay those of the configuration."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    by_parameter: dict[str, Tensors] = {}
    for full, tensor in stored.items():
        name, _, key = full.rpartition(".")
        by_parameter.setdefault(name, {})[key] = tensor
    content = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    content["state"] = {
        index: {key: part_like(parameter, part) for key, part in by_parameter[names[id(parameter)]].items()}
        for index, parameter in enumerate(order)
        if names[id(parameter)] in by_parameter
    }
    optimizer.load_state_dict(content)
