"""Of a model that is split: what can be seen in one process. What it trains is in test_sharding.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.engines.torch.tensor_parallel import PartOfDropout


class Ranks:
    """A mesh of one dimension, seen by one of its ranks."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks

    def size(self) -> int:
        return self.ranks

    def get_local_rank(self) -> int:
        return self.rank


def kept(rank: int, ranks: int, features: int = 8) -> torch.Tensor:
    """What is kept of ones by a rank's dropout, and how large, with the same generator on each rank."""
    torch.manual_seed(3)
    mesh: Any = Ranks(rank, ranks)
    return PartOfDropout(0.25, mesh)(torch.ones(2, 5, features // ranks))


@pytest.mark.parametrize("ranks", [2, 4])
def test_parts_of_features_are_dropped_as_the_whole_is(ranks: int) -> None:
    parts = [kept(rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat(parts, dim=-1), kept(0, 1))
    assert not torch.equal(parts[0], parts[1])
    torch.testing.assert_close(parts[0].unique(), torch.tensor([0.0, 1 / 0.75]))


def test_nothing_is_dropped_where_nothing_is_trained() -> None:
    mesh: Any = Ranks(0, 2)
    assert torch.equal(PartOfDropout(0.5, mesh).eval()(torch.ones(3)), torch.ones(3))
