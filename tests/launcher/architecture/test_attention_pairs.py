"""Query/key pairs of attention, against masks that are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from launcher.architecture.attention_pairs import Extent, mean_pairs, pairs

LENGTHS = (1, 7, 8, 9, 16, 21)


def counted(length: int, extent: Extent) -> int:
    query, key = np.arange(length)[:, None], np.arange(length)[None, :]
    sees = {
        "all": key <= query,
        "window": (key <= query) & (query - key < (extent.size or 0)),
        "chunk": (key <= query) & (query // (extent.size or 1) == key // (extent.size or 1)),
        "none": key < 0,
    }
    return int(np.broadcast_to(sees[extent.kind], (length, length)).sum())


@pytest.mark.parametrize(
    "extent", [Extent(), Extent("window", 8), Extent("chunk", 8), Extent("window", 1), Extent("none")]
)
def test_pairs_are_those_of_the_mask(extent):
    expected = [counted(length, extent) for length in LENGTHS]
    assert [pairs(float(length), extent) for length in LENGTHS] == expected
    assert pairs(np.array(LENGTHS, dtype=np.float64), extent).tolist() == expected
    assert pairs(torch.tensor(LENGTHS).double(), extent).tolist() == expected


def test_the_mean_is_over_the_layers():
    extents = (Extent("window", 8), Extent(), Extent("window", 8), Extent("none"))
    expected = sum(counted(21, extent) for extent in extents) / 4
    assert mean_pairs(21.0, extents) == pytest.approx(expected)
    assert mean_pairs(21.0) == counted(21, Extent())
