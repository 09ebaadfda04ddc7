"""adapter_config.json of a LoRA adapter, and whether the adapter's tensors are what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError
from postprocess.consolidate.expected import ModelConfig
from postprocess.consolidate.metadata import GqaQkv, Spec

CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_HALF = re.compile(r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?:\.weight)?")
# Kept in shards whose metadata does not tell how they lie, or not saved at all: a consolidated adapter would be wrong.
_NOT_SUPPORTED = ("use_dora", "modules_to_save", "trainable_token_indices")


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json of ``directory``. Raises TrntuneError where it is missing or of another kind than LoRA."""
    path = directory / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrntuneError(f"{path} is missing: copy it from the run that trained the adapter") from None
    except (OSError, ValueError) as error:
        raise TrntuneError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise TrntuneError(f"{path} is not of a LoRA adapter")
    given = [key for key in _NOT_SUPPORTED if config.get(key)]
    if given:
        raise TrntuneError(f"{path}: {given[0]} is set: optimum-neuron's shards do not say how its tensors lie")
    return config


def original_config(config: Mapping[str, Any], specs: Sequence[Spec]) -> dict[str, Any]:
    """``config`` for the original model: layers that were fused for training are named one by one."""
    names = {spec.fused: list(_layers_of(spec)) for spec in specs}
    result = dict(config)
    targets = config.get("target_modules")
    if isinstance(targets, list):
        result["target_modules"] = list(
            dict.fromkeys(name for target in targets for name in names.get(target, [target]))
        )
    for key in ("rank_pattern", "alpha_pattern"):
        pattern: Mapping[str, Any] = config.get(key) or {}
        result[key] = {layer: value for name, value in pattern.items() for layer in names.get(name, [name])}
    return result


def check_adapter(
    path: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], base: ModelConfig | None
) -> None:
    """Whether ``shapes`` are those of the adapter of ``config``, and of ``base`` when its config is known.

    Raises TrntuneError for half a layer, another rank, a layer that is no target or that does not fit the base.
    """
    ranks = {config.get("r"), *(config.get("rank_pattern") or {}).values()}
    halves = [half for name in shapes if (half := LoraMatrix.of(name))]
    for half in halves:
        if half.partner not in shapes:
            raise TrntuneError(f"{path}: {half.name} is there without {half.partner}")
        rank = shapes[half.name][half.rank_axis]
        if rank not in ranks:
            raise TrntuneError(f"{path} is another adapter's: its r is {config.get('r')}, {half.name} has rank {rank}")
        if not _is_target(half.layer, config.get("target_modules")):
            raise TrntuneError(f"{path} is another adapter's: its target_modules do not name {half.layer}")
        if base is not None:
            _check_size(half, shapes[half.name], base)


@dataclass(frozen=True)
class LoraMatrix:
    """lora_A or lora_B of one layer, by its name in an adapter."""

    name: str
    layer: str
    which: str
    is_embedding: bool

    @classmethod
    def of(cls, name: str) -> LoraMatrix | None:
        """None for a name that is no such half: a bias, or weights of the base saved with the adapter."""
        match = _HALF.fullmatch(name)
        return cls(name, match["layer"], match["which"], bool(match["embedding"])) if match else None

    @property
    def partner(self) -> str:
        mine, other = (self.which, "B" if self.which == "A" else "A")
        kind = "lora_embedding_" if self.is_embedding else "lora_"
        return f"{self.layer}.{kind}{other}{self.name.removeprefix(f'{self.layer}.{kind}{mine}')}"

    @property
    def rank_axis(self) -> int:
        return 0 if self.which == "A" else 1

    @property
    def base_axis(self) -> int:
        """The axis of the layer's weight that the other axis is as long as. An embedding's weight is [in, out]."""
        return int((self.which == "A") != self.is_embedding)


def _is_target(layer: str, targets: Any) -> bool:
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, layer) is not None
    return any(layer == target or layer.endswith(f".{target}") for target in targets or ())


def _check_size(half: LoraMatrix, shape: tuple[int, ...], base: ModelConfig) -> None:
    weight = base.shapes.get(f"{half.layer.removeprefix(_PREFIX)}.weight")
    if weight is None:
        raise TrntuneError(f"{half.layer} is no layer of {base.path}: give the adapter's own base model")
    if shape[1 - half.rank_axis] != weight[half.base_axis]:
        raise TrntuneError(f"{half.name} of shape {shape} does not fit {weight} of {base.path}: another base model?")


def _layers_of(spec: Spec) -> tuple[str, ...]:
    return (spec.query, spec.key, spec.value) if isinstance(spec, GqaQkv) else spec.linears
