"""Which row is trained on when: a function of seed, pass and step alone, so that no position has to be remembered."""

from __future__ import annotations

import functools
import random
from array import array
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
    """One replica's micro batches of a pass: replica r of R takes every R-th, beginning with the r-th."""

    def __init__(self, rows: int, seed: int, size: int, replica: int, replicas: int) -> None:
        self.rows, self.seed, self.size = rows, seed, size
        self.replica, self.replicas = replica, replicas
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows // (self.size * self.replicas)

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.rows, self.seed, self.epoch)
        for start in range(self.replica * self.size, self.rows, self.replicas * self.size):
            yield list(order[start : start + self.size])
