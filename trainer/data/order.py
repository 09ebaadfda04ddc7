"""Which row is trained on when: a function of seed, pass and step alone, so that no position has to be remembered."""

from __future__ import annotations

import functools
import random
from array import array
from collections import deque
from collections.abc import Iterator, Sequence

import torch


@functools.lru_cache(maxsize=2)
def epoch_order(rows: int, seed: int, epoch: int) -> Sequence[int]:
    """The order of a pass over ``rows`` training rows; 8 bytes each."""
    order = array("q", range(rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def rows_of_step(step: int, rows: int, global_batch_size: int, seed: int) -> list[int]:
    """The rows of optimizer step ``step``, counted from 1, on all replicas. ``rows`` is whole global batches."""
    epoch, batch = divmod(step - 1, rows // global_batch_size)
    return list(epoch_order(rows, seed, epoch)[batch * global_batch_size : (batch + 1) * global_batch_size])


class MicroBatches(torch.utils.data.Sampler[list[int]]):
    """One replica's micro batches of a pass: replica r of R takes every R-th, beginning with the r-th.

    ``step`` is how many micro batches an optimizer step has; ``taken`` are the last as many that were given.
    """

    def __init__(self, rows: int, seed: int, size: int, replica: int, replicas: int, step: int = 1) -> None:
        self.rows, self.seed, self.size = rows, seed, size
        self.replica, self.replicas = replica, replicas
        self.epoch = 0
        self.taken: deque[list[int]] = deque(maxlen=step)

    def set_epoch(self, epoch: int) -> None:
        """Which pass the next iteration is over."""
        self.epoch = epoch

    def own(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """This replica's micro batches of ``rows``, which all replicas go through: those of a pass, or of a step."""
        for start in range(self.replica * self.size, len(rows), self.replicas * self.size):
            yield list(rows[start : start + self.size])

    def __len__(self) -> int:
        return self.rows // (self.size * self.replicas)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.own(epoch_order(self.rows, self.seed, self.epoch)):
            self.taken.append(batch)
            yield batch
