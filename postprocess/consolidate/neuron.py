"""optimum-neuron's sharded checkpoints as a Source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from launcher.errors import TrntuneError
from postprocess.consolidate.adapter import CONFIG, check_adapter, original_config, read_adapter_config
from postprocess.consolidate.expected import ModelConfig, read_config
from postprocess.consolidate.layout import LogicalTensor, logical_tensors
from postprocess.consolidate.locate import Location
from postprocess.consolidate.metadata import GqaQkv, Spec
from postprocess.consolidate.replicas import Divergence, difference, diverged_message
from postprocess.consolidate.shards import ShardTensor
from postprocess.consolidate.source import Kind
from postprocess.consolidate.stages import Stage, check_layers, open_stages, some
from postprocess.safetensors.header import TensorSpec, dtype_code

_OUTPUT, _INPUT = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class NeuronSource:
    """Shards of optimum-neuron 0.4.5. ``open_neuron`` makes one; made means complete and of the right shapes."""

    location: Location
    stages: Sequence[Stage]
    base: Path | None
    logical: dict[str, LogicalTensor]
    stored: dict[str, ShardTensor]
    texts: dict[str, str] = field(default_factory=dict)

    def with_texts(self, more: dict[str, str]) -> NeuronSource:
        """The same with more files to write."""
        return replace(self, texts={**self.texts, **more})

    @property
    def kind(self) -> Kind:
        return "model" if self.location.adapter is None else "adapter"

    @property
    def directory(self) -> Path:
        return self.location.shards

    @cached_property
    def files(self) -> list[Path]:
        config = self.location.shards.parent / CONFIG
        ranks = [path for stage in self.stages for rank in stage.ranks for path in rank.files]
        return [*(stage.metadata.path for stage in self.stages), *ranks, *([config] if config.is_file() else [])]

    @cached_property
    def specs(self) -> list[TensorSpec]:
        return [TensorSpec(name, dtype_code(stored.dtype), stored.shape) for name, stored in self.stored.items()]

    @property
    def companions(self) -> list[Path]:
        return [self.location.home, *([self.base] if self.base else [])]

    def check(self, allow_diverged: bool) -> list[str]:
        """Compare replicas over the ranks. Raises TrntuneError when they diverged and that is not allowed."""
        message = diverged_message(self._divergences())
        if message and not allow_diverged:
            raise TrntuneError(f"{self.directory}: {message}; --allow-diverged takes rank 0's")
        return [f"{message}; rank 0's are taken"] if message else []

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor of the original model, from all ranks' parts."""
        return self.logical[name].blocks(self._parts(self.logical[name]))

    def describe(self) -> dict[str, Any]:
        return {
            "format": "optimum-neuron",
            "adapter": self.location.adapter,
            "tensor_parallel_ranks": len(self.stages[0].ranks),
            "pipeline_stages": len(self.stages),
            "xser": self.stages[0].ranks[0].is_xser,
        }

    def _parts(self, tensor: LogicalTensor) -> list[torch.Tensor]:
        return [rank.load(tensor.saved) for rank in self.stages[tensor.stage].ranks]

    def _divergences(self) -> list[Divergence]:
        # A fused layer's lora_A is one saved tensor of several logical ones.
        replicated = {(t.stage, t.saved, t.rows): t for t in self.logical.values() if t.is_replicated}
        found = [Divergence(t.name, difference(t.replicas(self._parts(t)))) for t in replicated.values()]
        found += self._tied_divergences()
        return [divergence for divergence in found if divergence.largest > 0]

    def _tied_divergences(self) -> list[Divergence]:
        """A tied output embedding is saved beside the input embedding, and must be the same."""
        stages = [stage for stage in self.stages if _is_tied_copy(stage, _OUTPUT)]
        inputs = [stage for stage in self.stages if _INPUT in stage.tensors]
        if not stages or not inputs:
            return []
        pairs = zip(inputs[0].ranks, stages[0].ranks, strict=True)
        return [Divergence(_OUTPUT, max(difference([a.load(_INPUT), b.load(_OUTPUT)]) for a, b in pairs))]


def open_neuron(location: Location, base: Path | None) -> NeuronSource:
    """Open shards that ``locate`` found and check all that names, shapes and sizes can tell.

    ``base`` is the base model's directory, for its config and tokenizer. Raises TrntuneError: ranks or files missing, a
    layer missing or there twice, metadata or config of another model.
    """
    stages = open_stages(location)
    check_layers(stages, location.shards)
    specs = [spec for stage in stages for spec in stage.metadata.specs]
    adapter_config = None
    if location.adapter is not None:
        adapter_config = original_config(read_adapter_config(location.shards.parent), specs)
    config = _find_config(location, base, adapter_config)
    logical = _logical(location, stages, config)
    stored = {name: tensor.stored(stages[tensor.stage].tensors[tensor.saved]) for name, tensor in logical.items()}
    shapes = {name: part.shape for name, part in stored.items()}
    if config is not None:
        _check_heads(config, specs)
    if adapter_config is not None:
        check_adapter(location.shards.parent / CONFIG, adapter_config, shapes, config)
    elif config is not None:
        _check_shapes(location, shapes, config)
    return NeuronSource(location, stages, base, logical, stored, _texts(adapter_config, base))


def _texts(adapter_config: dict[str, Any] | None, base: Path | None) -> dict[str, str]:
    if adapter_config is None:
        return {}
    # optimum-neuron leaves the name empty for a base model that was given as an object; peft needs one to load it.
    if base is not None and not adapter_config.get("base_model_name_or_path"):
        adapter_config = {**adapter_config, "base_model_name_or_path": str(base.absolute())}
    return {CONFIG: json.dumps(adapter_config, indent=2) + "\n"}


def _find_config(location: Location, base: Path | None, adapter_config: dict[str, Any] | None) -> ModelConfig | None:
    """The config.json of the model, or of an adapter's base where that is known. A model must have one."""
    named = (adapter_config or {}).get("base_model_name_or_path")
    places = [location.home, base, Path(named) if named else None]
    config = next((found for place in places if place is not None and (found := read_config(place))), None)
    if config is None and base is not None:
        raise TrntuneError(f"{base} has no config.json: --base must be the directory of the base model")
    if config is None and location.adapter is None:
        raise TrntuneError(f"{location.home}/config.json is missing: give the base model's directory with --base")
    return config


def _logical(location: Location, stages: Sequence[Stage], config: ModelConfig | None) -> dict[str, LogicalTensor]:
    found: dict[str, LogicalTensor] = {}
    for stage in stages:
        saved = {name: parts[0] for name, parts in stage.tensors.items()}
        if location.adapter is None and config is not None and config.tied and _is_tied_copy(stage, _OUTPUT):
            del saved[_OUTPUT]
        for tensor in logical_tensors(stage.number, stage.metadata, saved):
            if tensor.name in found:
                stages_of_it = f"{found[tensor.name].stage} and {stage.number}"
                raise TrntuneError(f"{location.shards}: pipeline stages {stages_of_it} both give {tensor.name}")
            found[tensor.name] = tensor
    return found


def _is_tied_copy(stage: Stage, name: str) -> bool:
    return name in stage.tensors and name not in stage.metadata.partitions


def _check_heads(config: ModelConfig, specs: Sequence[Spec]) -> None:
    """Heads in another number would be put in another order, in a tensor of the same shape."""
    for spec in specs:
        if isinstance(spec, GqaQkv):
            told = (spec.heads, spec.kv_heads, spec.q_rows * spec.tp_size)
            wanted = (config.heads, config.kv_heads, config.heads * config.head_dim)
            if told != wanted:
                raise TrntuneError(
                    f"{spec.module}: the metadata is of {told[0]} heads, {told[1]} key heads and {told[2]} query rows, "
                    f"{config.path} of {wanted[0]}, {wanted[1]} and {wanted[2]}: another model's?"
                )


def _check_shapes(location: Location, shapes: dict[str, tuple[int, ...]], config: ModelConfig) -> None:
    lacking = sorted(set(config.shapes) - set(shapes))
    if lacking:
        raise TrntuneError(f"{location.shards} lacks {some(lacking)} of the model in {config.path}")
    foreign = sorted(set(shapes) - set(config.shapes))
    if foreign:
        raise TrntuneError(f"{location.shards} holds {some(foreign)}, which the model in {config.path} has not")
    for name, shape in shapes.items():
        if shape != config.shapes[name]:
            raise TrntuneError(
                f"{name} is {shape} in {location.shards}, {config.shapes[name]} by {config.path}: another model's?"
            )
