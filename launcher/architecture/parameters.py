"""How many parameters a model has and trains, in all and on each process."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.architecture.family_table import HEAD
from launcher.architecture.quantized import packed
from launcher.architecture.tensors import (
    FIRST,
    LAST,
    Tensor,
    adapter_tensors,
    base_tensors,
    first_reached,
    modules,
    other_tensors,
    sharing_a,
)
from launcher.config.schema import ArchitectureConfig, Config, LoraConfig, ParallelismConfig


def stage_of(tensor: Tensor, layers: int, pipeline_parallel: int) -> int:
    """The pipeline stage that holds a tensor: layers in runs, of which the last ones have one more where they don't
    divide, embedding first, norm and head last (neuronx_distributed, pipeline/partition.py: create_partitions)."""
    if tensor.layer == FIRST:
        return 0
    if tensor.layer == LAST:
        return pipeline_parallel - 1
    each, longer = divmod(layers, pipeline_parallel)
    shorter = pipeline_parallel - longer
    if tensor.layer < shorter * each:
        return tensor.layer // each
    return shorter + (tensor.layer - shorter * each) // (each + 1)


@dataclass(frozen=True)
class Parameters:
    """Exact counts of distinct parameters, tied ones once."""

    total: int
    """of the model, without adapters"""
    trainable: int
    adapter: int
    """trained with an adapter: its matrices and what is trained beside them; 0 for full fine-tuning"""
    matmul: int
    """of the model, without embeddings that are only looked up"""
    local: tuple[int, ...]
    """model and adapter on a rank of each pipeline stage"""
    trainable_local: tuple[int, ...]
    idle: int = 0
    """of the model's experts, those that a token doesn't go through; ``matmul`` is without them"""
    low_rank: int = 0
    """of ``adapter``: its matrices and magnitudes"""
    saved_matmul: int = 0
    """of ``adapter``: linear layers, and an output head, that are trained in full"""
    forward_only: int = 0
    """of ``matmul``: in decoder layers that the backward pass doesn't reach"""
    first_layer: int = 0
    """the first decoder layer that it reaches"""
    packed: int = 0
    """of the model: weights that a base in 4 bit packs"""

    @property
    def fullest(self) -> int:
        """The pipeline stage that trains and holds most."""
        return max(range(len(self.local)), key=lambda stage: (self.trainable_local[stage], self.local[stage]))


def count(config: Config, facts: ArchitectureConfig) -> Parameters:
    """Count the parameters of a run."""
    parallel, lora = config.parallelism, config.lora if config.method.name == "lora" else None
    base = list(base_tensors(facts, parallel.tensor_parallel))
    matrices = list(adapter_tensors(facts, lora, parallel.tensor_parallel, sharing_a(config, facts))) if lora else []
    others = list(other_tensors(facts, lora)) if lora else []
    adapter = matrices + others
    trained_ones, first = adapter or base, first_reached(facts, lora) if lora else 0
    total = sum(tensor.size for tensor in base)
    return Parameters(
        total=total,
        trainable=sum(tensor.size for tensor in trained_ones),
        adapter=sum(tensor.size for tensor in adapter),
        matmul=total - (0 if facts.tied_embeddings else facts.vocab_size * facts.hidden_size),
        local=_local(base + adapter, facts, parallel, tied=facts.tied_embeddings),
        trainable_local=_local(trained_ones, facts, parallel, tied=facts.tied_embeddings and not adapter),
        low_rank=sum(tensor.size for tensor in matrices),
        saved_matmul=sum(tensor.size for tensor in others if tensor.name.endswith(("_proj.weight", f"{HEAD}.weight"))),
        forward_only=sum(tensor.size for tensor in base if 0 <= tensor.layer < first),
        first_layer=first,
        packed=_packed(base, facts, lora) if lora and lora.quantize_base else 0,
    )


def _packed(base: list[Tensor], facts: ArchitectureConfig, lora: LoraConfig) -> int:
    names = {f"{name}.weight" for name in packed(modules(facts), lora)}
    return sum(tensor.size for tensor in base if tensor.name in names)


def _local(
    tensors: list[Tensor], facts: ArchitectureConfig, parallel: ParallelismConfig, tied: bool
) -> tuple[int, ...]:
    """Elements on a rank of each pipeline stage; a tied embedding lies on the first and on the last one."""
    stages = [0] * parallel.pipeline_parallel
    for tensor in tensors:
        stages[stage_of(tensor, facts.layers, parallel.pipeline_parallel)] += tensor.local_size(
            parallel.tensor_parallel
        )
    if tied and parallel.pipeline_parallel > 1:
        stages[-1] += tensors[0].local_size(parallel.tensor_parallel)
    return tuple(stages)
