"""Who holds and who writes what of a run on Neuron: processes as (data, pipeline, tensor) ranks, and their files.

neuronx_distributed 0.15 numbers them with tensor-parallel neighbours next to each other, then pipeline, then data
(parallel_layers/parallel_state.py, initialize_model_parallel). Weights lie as optimum-neuron names its shards, so that
postprocess.consolidate reads them; in safetensors, since that needs no unpickling.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """One process."""

    number: int
    data: int
    pipeline: int
    tensor: int

    @property
    def holds_first_copy(self) -> bool:
        """True in one of the processes that hold the same part of the model: it writes what they have alike."""
        return self.data == 0


def rank_of(number: int, tensor_parallel: int, pipeline_parallel: int) -> Rank:
    """The place of process ``number``."""
    replica, within = divmod(number, tensor_parallel * pipeline_parallel)
    pipeline, tensor = divmod(within, tensor_parallel)
    return Rank(number, replica, pipeline, tensor)


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
