"""Of a model that is split: what can be seen in one process. What it trains is in test_sharding.py."""

from __future__ import annotations

import pytest
import torch

from trainer.engines.torch.tensor_parallel import SharedDropout


def kept(rank: int, ranks: int, features: int = 8) -> torch.Tensor:
    """What is kept of ones by a rank's dropout, and how large, with the same generator on each rank."""
    torch.manual_seed(3)
    return SharedDropout(0.25, ranks, rank)(torch.ones(2, 5, features // ranks))


@pytest.mark.parametrize("ranks", [2, 4])
def test_parts_of_features_are_dropped_as_the_whole_is(ranks: int) -> None:
    parts = [kept(rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat(parts, dim=-1), kept(0, 1))
    assert not torch.equal(parts[0], parts[1])
    torch.testing.assert_close(parts[0].unique(), torch.tensor([0.0, 1 / 0.75]))


def test_nothing_is_dropped_where_nothing_is_trained() -> None:
    assert torch.equal(SharedDropout(0.5, 2, 0).eval()(torch.ones(3)), torch.ones(3))
