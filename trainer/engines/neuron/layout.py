"""Who holds and who writes what of a run on Neuron: processes as (data, pipeline, tensor) ranks, and their files.

Weights lie as optimum-neuron names its shards, so that postprocess.consolidate reads them; in safetensors, since that
needs no unpickling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from launcher.config.schema import ParallelismConfig
from launcher.errors import TrntuneError


@dataclass(frozen=True)
class Rank:
    """One process: its number among all, and its place as neuronx_distributed has it (see
    trainer.engines.neuron.distributed): the order of numbers depends on the hardware and on the sizes of the groups."""

    number: int
    data: int
    pipeline: int
    tensor: int

    @property
    def holds_first_copy(self) -> bool:
        """True in one of the processes that hold the same part of the model: it writes what they have alike."""
        return self.data == 0


def reporters(everyone: Sequence[Rank], parallel: ParallelismConfig) -> list[int]:
    """The number of one process of each replica, by the replica's number: one of the last pipeline stage, which alone
    knows the loss.

    ``everyone`` is all processes by number. Raises TrntuneError unless each place of ``parallel`` is taken once: two
    processes that think themselves the same part would train on the wrong rows, and write one file.
    """
    sizes = (parallel.data_parallel, parallel.pipeline_parallel, parallel.tensor_parallel)
    numbers = {(rank.data, rank.pipeline, rank.tensor): rank.number for rank in everyone}
    if set(numbers) != set(product(*map(range, sizes))) or [rank.number for rank in everyone] != list(
        range(len(numbers))
    ):
        raise TrntuneError(
            f"neuronx_distributed made other groups than data {sizes[0]} x pipeline {sizes[1]} x tensor {sizes[2]} of "
            f"{len(everyone)} processes: {[(rank.data, rank.pipeline, rank.tensor) for rank in everyone]}"
        )
    return [numbers[replica, parallel.pipeline_parallel - 1, 0] for replica in range(parallel.data_parallel)]


def shards_directory(method: str) -> str:
    """Where weights lie below a checkpoint: optimum-neuron's names for an adapter and for a model."""
    return "adapter_default/adapter_shards" if method == "lora" else "shards"


def weights_file(method: str, rank: Rank) -> str:
    """This process's part of the weights: replicas have the same, and share one file."""
    name = f"dp_rank_00_tp_rank_{rank.tensor:02d}_pp_rank_{rank.pipeline:02d}.safetensors"
    return f"{shards_directory(method)}/model/{name}"


def metadata_file(method: str, rank: Rank) -> str:
    """How this pipeline stage's parameters lie over the tensor-parallel ranks."""
    return f"{shards_directory(method)}/mp_metadata_pp_rank_{rank.pipeline}.json"


def optimizer_file(rank: Rank, zero_1: bool) -> str:
    """This process's part of the optimizer state. With ZeRO-1 each replica has another part; without it they share."""
    data = rank.data if zero_1 else 0
    return f"optimizer/dp_rank_{data:02d}_tp_rank_{rank.tensor:02d}_pp_rank_{rank.pipeline:02d}.safetensors"


def best_file(rank: Rank) -> str:
    """This process's part of the weights of the lowest evaluation."""
    return f"best/tp_rank_{rank.tensor:02d}_pp_rank_{rank.pipeline:02d}.safetensors"
