"""The rows of a replica in micro batches, in the order of trainer.data.order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from trainer.data.collate import Collator
from trainer.engines.base import Rows
from trainer.engines.neuron.part import Part


class Remaining:
    """The micro batches of one replica from one step to the last, as optimum-neuron's only pass: its loop begins each
    pass at the front and can't go on in the middle of one."""

    sampler = None
    dataset = None

    def __init__(
        self, part: Part, collator: Collator, rows: Rows, rows_of: Callable[[int], list[int]], done: int, total: int
    ) -> None:
        """``rows_of`` a step gives the indices of its ``rows``, of all replicas; ``done`` of ``total`` steps are."""
        self.part, self.collator, self.rows, self.rows_of = part, collator, rows, rows_of
        self.done, self.total = done, total

    def __len__(self) -> int:
        return (self.total - self.done) * (1 if self.part.staged else self.part.micro_batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        size, replica, replicas = self.part.config.training.micro_batch_size, self.part.place.data, self.part.replicas
        for step in range(self.done + 1, self.total + 1):
            rows = self.rows_of(step)
            for start in range(replica * size, len(rows), replicas * size):
                yield self.collator([self.rows[row] for row in rows[start : start + size]])
