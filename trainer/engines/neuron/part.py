"""This process among the ranks: which rows it takes, which part of the model it has, and what it agrees on."""

from __future__ import annotations

import torch

from launcher.config.schema import Config, accumulation_steps
from launcher.errors import TrntuneError
from trainer.checkpoints.peers import Peers
from trainer.engines.neuron.layout import Rank, optimizer_file, reporters
from trainer.metrics.throughput import Counts
from trainer.signals import Stop


class Part:
    """What training, evaluation and checkpoints take of the engine."""

    def __init__(self, config: Config, place: Rank, together: Peers) -> None:
        """All ranks call it, each with its own ``place``."""
        self.config, self.place, self.together = config, place, together
        self.rank = place.number
        self.replicas: int = config.parallelism.data_parallel
        self.reporters = reporters(together.all_gather(place), config.parallelism)
        self.staged = config.parallelism.pipeline_parallel > 1
        self.micro_batches: int = accumulation_steps(config)
        """of a step, on each replica"""
        self.dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
        self.shapes: dict[str, tuple[int, ...]] = {}
        """of the batches until now, by the name of the input"""

    @property
    def rows_at_once(self) -> int:
        """Rows that one call of the model takes: in pipeline stages all micro batches of a step."""
        return self.config.training.micro_batch_size * (self.micro_batches if self.staged else 1)

    @property
    def optimizer_file(self) -> str:
        return optimizer_file(self.place, self.config.parallelism.zero_1)

    def agree(self, counts: Counts, wish: Stop) -> tuple[Counts, Stop]:
        """The counts of all replicas, and the strongest wish of all ranks. All ranks call it."""
        answers: list[tuple[list[float], int]] = self.together.all_gather((counts.as_list(), int(wish)))
        summed = sum((Counts.from_list(answers[rank][0]) for rank in self.reporters), Counts())
        return summed, Stop(max(wish for _, wish in answers))

    def summed(self, values: list[float]) -> list[float]:
        """``values`` summed over the replicas, the same on every rank. All ranks call it."""
        answers: list[list[float]] = self.together.all_gather(values)
        return [sum(column) for column in zip(*(answers[rank] for rank in self.reporters), strict=True)]

    def note_shapes(self, inputs: dict[str, torch.Tensor]) -> None:
        """Raise TrntuneError when a batch has another shape than those before: the compiler would begin again."""
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            raise TrntuneError(
                f"a batch has shapes {shapes}, those before had {self.shapes}: this is a fault of trntune"
            )
