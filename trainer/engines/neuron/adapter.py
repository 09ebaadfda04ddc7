"""The LoRA adapter that training on Neuron begins with: the same numbers as the torch engine's, for the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from launcher.config.schema import Config
from trainer.engines.state import adapter_document
from trainer.models.adapt import modules_of, peft_config
from trainer.models.load import apply_method, weight_dtype
from trainer.probes.model import on_meta

Tensors = dict[str, torch.Tensor]


def initial_adapter(model_dir: Path, config: Config) -> Tensors:
    """The untrained adapter under peft's names, in host memory. The base's weights are not read, and take no memory."""
    adapted = apply_method(_weightless(on_meta(model_dir), weight_dtype(config)), config)
    assert isinstance(adapted, PeftModel)
    state: Tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def config_document(model_dir: Path, config: Config) -> tuple[str, Any]:
    """What belongs beside the weights, for the model as it is without Neuron: file name and JSON value."""
    if config.method.name == "full":
        return "config.json", on_meta(model_dir).config.to_dict()
    adapter = peft_config(config.lora, modules_of(on_meta(model_dir)))
    adapter.base_model_name_or_path = config.model.hub_id or str(model_dir)
    return "adapter_default/adapter_config.json", adapter_document(adapter)


def share_first_half(adapter: Tensors, fused: tuple[str, ...]) -> Tensors:
    """``adapter`` in which the layers ``fused`` of a block have the lora_A of the first of them.

    optimum-neuron takes the mean of theirs for the fused layer's only lora_A, which has less variance than any of them.
    """
    first, *others = fused
    return {name: adapter[_instead(name, first, others)] for name in adapter}


def _instead(name: str, first: str, others: list[str]) -> str:
    if not name.endswith(".lora_A.weight"):
        return name
    for other in others:
        name = name.replace(f".{other}.lora_A.weight", f".{first}.lora_A.weight")
    return name


def _weightless(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """``model`` with parameters that are one zero, repeated: peft asks them for shape, dtype and device."""
    zero = torch.zeros((), dtype=dtype)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(zero.expand(parameter.shape), requires_grad=False)
    return model
