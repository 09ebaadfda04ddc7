"""The frozen base in 4 bit (QLoRA), packed by bitsandbytes while transformers reads it.

Which layers are packed is said by name: transformers takes every linear layer by class, also routers that compute more
than a product, and would replace them by one that doesn't.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from launcher.architecture.adapters import MAX_NAMES, Modules
from launcher.architecture.quantized import packed
from launcher.config.schema import Config, LoraConfig
from launcher.errors import TrntuneError, first
from launcher.jobs.torchrun import is_rank_zero
from launcher.model_dir.files import weight_files
from trainer.libraries.transformers_versions import made_of
from trainer.models.adapt import is_packed, modules_of
from trainer.models.stored import stored_shapes, stored_tensors

_BLOCK = 64
"""weights that share a scale"""


def packed_layers(model: PreTrainedModel, modules: Modules, lora: LoraConfig) -> list[str]:
    """Full names of the layers that are packed. Raises TrntuneError for those that keep their weights turned."""
    meant = packed(modules, lora)
    turned = [name for name in meant if isinstance(model.get_submodule(name), Conv1D)]
    if turned:
        raise TrntuneError(
            f"lora.quantize_base: {first(turned, MAX_NAMES)} keep their weights turned (Conv1D), which isn't packed "
            "here; leave it out for this family"
        )
    return meant


class Packing:
    """What is packed of the base in ``model_dir``. Raises TrntuneError for layers that can't be."""

    def __init__(self, model_dir: Path, config: Config) -> None:
        self.model_dir, self.config = model_dir, config
        trusted = config.model.trust_remote_code
        facts = AutoConfig.from_pretrained(model_dir, trust_remote_code=trusted)
        with torch.device("meta"):
            self.model: PreTrainedModel = AutoModelForCausalLM.from_config(facts, trust_remote_code=trusted)
        self.meant = set(packed_layers(self.model, modules_of(self.model), config.lora))

    def stored(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The model's tensors in its files, one at a time: packed, they don't show any more whether they are finite.
        Layers with even scales are left as they are from here on."""
        files = weight_files(self.model_dir)
        owners = self._owners(files)
        even = []
        for name, tensor in stored_tensors(files):
            owner = owners.get(name)
            if owner is None:  # no part of the model
                continue
            yield name, tensor
            layer = owner.removesuffix(".weight")
            if layer in self.meant and has_even_scales(tensor):
                self.meant.discard(layer)
                even.append(layer)
        if even and is_rank_zero():
            print(
                f"note: {self.model_dir}: {first(even, MAX_NAMES)} stay as they are: their scales are all the same, "
                "which bitsandbytes can't pack",
                file=sys.stderr,
            )

    def _owners(self, files: Iterable[Path]) -> dict[str, str]:
        """The parameters that tensors in files are, or become a part of; without what is no part of the model."""
        names = dict(self.model.named_parameters(remove_duplicate=False))
        # A model that was saved without its head has no prefix in its files, another may have one more.
        by_ending = {ending: name for name in reversed(names) for ending in _endings(name)}
        shapes = stored_shapes(files)
        made = made_of(self.model, shapes)
        found = {source: name for name, parameter in made.items() for source in parameter.sources}
        for name in shapes:
            owner = by_ending.get(name) or next((each for each in _endings(name) if each in names), None)
            if owner is not None:
                found.setdefault(name, owner)
        return found

    def arguments(self, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """from_pretrained's arguments that pack what is meant on ``device``, and nothing else. ``dtype``: of the
        products."""
        # bitsandbytes 0.48 asks for sizes as torch before 2.10 did; a line for each kind of product says so.
        warnings.filterwarnings("ignore", "_check_is_size will be removed", FutureWarning)
        linear = (name for name, module in self.model.named_modules() if isinstance(module, nn.Linear | Conv1D))
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.config.lora.quantize_base,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=[name for name in linear if name not in self.meant],
        )
        # A process of several has its device's number, by which transformers looks for an accelerator.
        place = torch.device("cpu") if device.type == "cpu" else device
        return {"quantization_config": settings, "device_map": {"": place}}

    def check(self, model: PreTrainedModel) -> None:
        """Raise TrntuneError unless exactly what is meant is packed."""
        found = {name for name, module in model.named_modules() if is_packed(module)}
        differing = sorted(found ^ self.meant)
        if differing:
            raise TrntuneError(
                f"lora.quantize_base: transformers packs {first(differing, MAX_NAMES)} otherwise than the settings "
                "say; leave it out for this family"
            )


def _endings(name: str) -> Iterator[str]:
    """A dotted name, and what is left of it without its first parts."""
    while name:
        yield name
        name = name.partition(".")[2]


def has_even_scales(weight: torch.Tensor) -> bool:
    """True where the scales of all blocks are the same, or so large that their mean is infinite: bitsandbytes 0.48
    packs scales by what they differ from their mean, and fails without a word where that is nothing."""
    flat = weight.flatten()
    whole = flat[: len(flat) // _BLOCK * _BLOCK].view(-1, _BLOCK)
    rest = flat[whole.numel() :].view(1, -1) if len(flat) % _BLOCK else flat.new_zeros(0, 1)
    scales = torch.cat([part.abs().amax(1).float() for part in (whole, rest)])
    away = (scales - scales.mean()).abs().amax()
    return not bool(away.isfinite()) or float(away) < torch.finfo(torch.float32).tiny


def leave_files(model: PreTrainedModel) -> None:
    """Copy what isn't packed out of the mapped files: one tensor keeps all of a file in memory, packed or not."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and getattr(parameter, "quant_state", None) is None:
            parameter.data = parameter.data.clone()
