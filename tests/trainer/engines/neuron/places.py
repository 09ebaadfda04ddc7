"""Ranks that are not there: their places, and what they answered."""

from __future__ import annotations

from itertools import product
from typing import Any

from trainer.engines.neuron.layout import Rank


def ranks(data: int, pipeline: int, tensor: int) -> list[Rank]:
    """Tensor-parallel neighbours next to each other, pipeline stages outermost: neuronx_distributed's usual order."""
    places = product(range(pipeline), range(data), range(tensor))
    return [Rank(number, replica, stage, part) for number, (stage, replica, part) in enumerate(places)]


class Recorded:
    """Peers of the first of ``everyone``, whose answers were written down."""

    def __init__(self, everyone: list[Rank], *others: Any) -> None:
        self.rank, self.everyone, self.others = 0, everyone, others

    def all_gather(self, value: Any) -> list[Any]:
        return list(self.everyone) if isinstance(value, Rank) else [value, *self.others]
