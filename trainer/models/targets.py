"""Which layers of a model get an adapter: the names of lora.target_modules against the model's own layers."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from launcher.errors import TrntuneError, nearest
from launcher.schema import ALL_LINEAR

# What gives queries and values, over all families: the first that a model has whole is its own choice.
_CHOICES: tuple[tuple[str, ...], ...] = (
    *(("q_proj", "v_proj"), ("query", "value"), ("q_proj", "kv_b_proj"), ("q_b_proj", "kv_b_proj")),
    *(("qkv_proj",), ("query_key_value",), ("c_attn",), ("Wqkv",), ("Wq", "Wv"), ("kv_proj",)),
    *(("receptance", "value"), ("in_proj",)),
)
# Layers of Llama, which the choices of conf/lora name: in another family they are no slip of the pen.
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# peft 0.17 refuses an adapter on these (tuners_utils._check_lora_target_modules_mamba): the kernels of these families
# read the weight without calling the layer.
_STATE_SPACE = ("falcon_h1", "mamba", "mamba2", "falcon_mamba")
_READ_BY_KERNELS = ("out_proj", "conv1d")


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The full names of the linear layers, the output head left out."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if is_linear(module) and module is not head]


def lora_targets(model: PreTrainedModel) -> list[str]:
    """What all-linear stands for: the last part of the names of the layers that can get an adapter, sorted."""
    leaves = {name.rpartition(".")[2] for name in linear_layers(model)}
    if getattr(model.config, "model_type", None) in _STATE_SPACE:
        leaves -= set(_READ_BY_KERNELS)
    return sorted(leaves)


def resolved_targets(model: PreTrainedModel, targets: list[str]) -> list[str]:
    """The names of ``targets``, or all of the model's for [all-linear].

    Raises TrntuneError for a target without a layer: peft takes it in silence as long as another one matches.
    """
    if targets == [ALL_LINEAR]:
        return lora_targets(model)
    linear = linear_layers(model)
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise TrntuneError(_no_layer(model, target))
    return targets


def _no_layer(model: PreTrainedModel, target: str) -> str:
    """What is there instead of ``target``, and what to type."""
    leaves = lora_targets(model)
    what = f"lora.target_modules: the model has no linear layer {target!r} (there are: {', '.join(leaves)})"
    if any(name.rpartition(".")[2] == target and p.dim() == 3 for name, p in model.named_parameters()):
        return f"{what}; {target} is one parameter of all experts, which gets no adapter here"
    if target not in _LLAMA and (close := nearest(target, leaves)):
        return f"{what}; nearest is {close}"
    return f"{what}; take lora.target_modules=[{','.join(own_choice(leaves))}], or [{ALL_LINEAR}] for all of them"


def own_choice(leaves: list[str]) -> list[str]:
    """Of the names of a family's layers those that give queries and values, as q_proj and v_proj do in Llama; all of
    them where it has no such layers."""
    return next((list(choice) for choice in _CHOICES if set(choice) <= set(leaves)), leaves)


def is_linear(module: nn.Module) -> bool:
    """True for a layer that gives the product with its weight: some routers are Linear by class, and give more."""
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    width = module.in_features if isinstance(module, nn.Linear) else module.nx
    with torch.no_grad():
        return torch.is_tensor(module(module.weight.new_zeros(1, width)))
