"""Parameters that every rank holds must be equal: training that forgets to reduce their gradients lets them diverge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Divergence:
    """The largest absolute difference between replicas of the tensor ``name``; infinite where one alone is NaN."""

    name: str
    largest: float


def difference(replicas: Sequence[torch.Tensor]) -> float:
    """The largest absolute difference of any replica from the first, 0.0 when all are equal. NaN equals NaN."""
    return max((_difference(replicas[0], other) for other in replicas[1:]), default=0.0)


def diverged_message(divergences: Sequence[Divergence]) -> str:
    """One line that names the worst, empty when there is none."""
    if not divergences:
        return ""
    worst = max(divergences, key=lambda divergence: divergence.largest)
    count = f"{len(divergences)} tensors" if len(divergences) > 1 else "a tensor"
    verb = "differ" if len(divergences) > 1 else "differs"
    return (
        f"{count} that all ranks must hold alike {verb} between them, most {worst.name} by up to {worst.largest:.3g}: "
        "training did not reduce gradients over the ranks"
    )


def _difference(first: torch.Tensor, other: torch.Tensor) -> float:
    if torch.equal(first, other):
        return 0.0
    gap = (first.double() - other.double()).abs()
    gap[first.isnan() & other.isnan()] = 0.0
    gap[first == other] = 0.0  # infinities of the same sign
    largest = float(gap.max())
    return math.inf if math.isnan(largest) else largest
