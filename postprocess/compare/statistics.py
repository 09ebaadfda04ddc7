"""Repeats of a variant as median and range, and ratios between two variants."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One number of each run of a variant."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Interval:
    """A number derived from two samples. ``low`` and ``high`` are None unless it can be paired by seed."""

    value: float
    low: float | None
    high: float | None


def sample(seeds: Sequence[int], values: Sequence[float | None]) -> Sample | None:
    """The sample, or None unless every run has the number: a median of some of the runs would hide the others."""
    present = tuple(value for value in values if value is not None)
    return Sample(tuple(seeds), present) if present and len(present) == len(values) else None


def paired(one: Sequence[int], other: Sequence[int]) -> bool:
    """True when both have the same seeds, at least two, each once: then their runs can be compared in pairs."""
    return len(one) > 1 and len(set(one)) == len(one) and sorted(one) == sorted(other)


def ratio(variant: Sample | None, base: Sample | None) -> Interval | None:
    """Ratio of the medians, with the range of the ratios of runs with the same seed. None without a base number."""
    if variant is None or base is None or 0 in (base.median, *base.values):
        return None
    value = variant.median / base.median
    if not paired(variant.seeds, base.seeds):
        return Interval(value, None, None)
    by_seed = dict(zip(base.seeds, base.values, strict=True))
    ratios = [mine / by_seed[seed] for seed, mine in zip(variant.seeds, variant.values, strict=True)]
    return Interval(value, min(ratios), max(ratios))


def saved(found: Interval | None) -> Interval | None:
    """The share of the base that a variant saves: 1 - ratio. Less is more here, so the range turns round."""
    if found is None:
        return None
    low, high = (None if end is None else 1 - end for end in (found.high, found.low))
    return Interval(1 - found.value, low, high)


def gained(found: Interval | None) -> Interval | None:
    """How much more than the base a variant does: ratio - 1. Not 1 - 1/ratio, which is the time saved."""
    if found is None:
        return None
    low, high = (None if end is None else end - 1 for end in (found.low, found.high))
    return Interval(found.value - 1, low, high)
