"""The frozen base in 4 bit (QLoRA), packed by bitsandbytes while transformers reads it.

Which layers are packed is said by name: transformers takes every linear layer by class, also routers that compute more
than a product, and would replace them by one that doesn't.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from launcher.adapters import MOST_NAMES
from launcher.errors import TrntuneError, first
from launcher.model_files import weight_files
from launcher.quantized import packed
from launcher.schema import Config
from trainer.models.adapt import is_packed, modules_of


def arguments(model_dir: Path, config: Config, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """from_pretrained's arguments that pack what ``launcher.quantized.packed`` names on ``device``, and nothing else.
    ``dtype``: of the products. Raises TrntuneError for layers that bitsandbytes would turn."""
    # bitsandbytes 0.48 asks for sizes as torch before 2.10 did; a line for each kind of product says so.
    warnings.filterwarnings("ignore", "_check_is_size will be removed", FutureWarning)
    trusted = config.model.trust_remote_code
    facts = AutoConfig.from_pretrained(model_dir, trust_remote_code=trusted)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(facts, trust_remote_code=trusted)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.lora.quantize_base,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_left(model, config),
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def _left(model: PreTrainedModel, config: Config) -> list[str]:
    """Full names of the layers that transformers would pack and that keep their precision."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    meant = set(packed(modules_of(model).linear, config.lora))
    turned = [name for name, module in layers if isinstance(module, Conv1D) and name in meant]
    if turned:
        raise TrntuneError(
            f"lora.quantize_base: {first(turned, MOST_NAMES)} keep their weights turned (Conv1D), which isn't packed "
            "here; leave it out for this family"
        )
    return [name for name, _ in layers if name not in meant]


def refuse_other_packing(model: PreTrainedModel, config: Config) -> None:
    """Raise TrntuneError unless exactly the layers are packed that the plan counts."""
    found = {name for name, module in model.named_modules() if is_packed(module)}
    differing = sorted(found ^ set(packed(modules_of(model).linear, config.lora)))
    if differing:
        raise TrntuneError(
            f"lora.quantize_base: transformers packs {first(differing, MOST_NAMES)} otherwise than the settings say; "
            "leave it out for this family"
        )


def leave_files(model: PreTrainedModel) -> None:
    """Copy what isn't packed out of the mapped files: one tensor keeps all of a file in memory, packed or not."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and getattr(parameter, "quant_state", None) is None:
            parameter.data = parameter.data.clone()


def stored(model_dir: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a model's files, one at a time: packed, they don't show any more whether they are finite."""
    for file in weight_files(model_dir):
        with safe_open(file, framework="pt") as content:
            opened: Any = content
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                yield name, opened.get_tensor(name)
