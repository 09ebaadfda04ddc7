"""The comparison as numbers: groups, variants, medians, ratios, savings. No text for people but labels and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from postprocess.compare.metrics import GAINS, METRICS, SAVINGS, Equal, equal_of, value
from postprocess.compare.notes import group_notes, separation
from postprocess.compare.runs import Collection, Excluded, Run
from postprocess.compare.statistics import Interval, Sample, gained, ratio, sample, saved
from postprocess.compare.variants import Group, Variant, group_runs


@dataclass(frozen=True)
class VariantReport:
    """A variant's numbers, and what they are of its base."""

    variant: Variant
    base: str
    samples: dict[str, Sample | None]
    """by metric"""
    ratios: dict[str, Interval | None]
    """by metric; of the base: empty"""
    savings: dict[str, Interval | None]
    """1 - ratio of times, costs and memory, by metric"""
    gains: dict[str, Interval | None]
    """ratio - 1 of throughputs, by metric"""

    @property
    def label(self) -> str:
        return self.variant.label

    @property
    def is_base(self) -> bool:
        return self.label == self.base


@dataclass(frozen=True)
class GroupReport:
    """Variants that may be compared, and what to know before one of their numbers is quoted."""

    number: int
    group: Group
    equal: Equal
    variants: tuple[VariantReport, ...]
    """each base before the variants that are a ratio to it"""
    notes: tuple[str, ...]
    separation: tuple[str, ...]
    """why its runs stand in no ratio with other groups'"""

    @property
    def title(self) -> str:
        return f"{self.group.agreed['model.name']} on {self.group.agreed['dataset.name']}"

    @property
    def blocks(self) -> list[list[VariantReport]]:
        """Each base with the variants that are a ratio to it, the base first."""
        bases = [each.label for each in self.variants if each.is_base]
        return [[each for each in self.variants if each.base == base] for base in bases]


@dataclass(frozen=True)
class Report:
    """All groups, and every run that is in none."""

    groups: tuple[GroupReport, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.group.runs]


def analyse(collection: Collection) -> Report:
    """The comparison of all runs of ``collection``."""
    groups = group_runs(collection.runs)
    reports = tuple(_group_report(number, groups) for number in range(1, len(groups) + 1))
    return Report(reports, tuple(collection.excluded), tuple(collection.notes))


def _group_report(number: int, groups: Sequence[Group]) -> GroupReport:
    group = groups[number - 1]
    equal = equal_of(group.runs)
    samples = {variant.label: _samples(variant, equal) for variant in group.variants}
    variants = [_variant_report(variant, group, samples) for variant in group.variants]
    return GroupReport(
        number, group, equal, _by_base(variants), tuple(group_notes(group)), tuple(separation(number, groups))
    )


def _by_base(variants: Sequence[VariantReport]) -> tuple[VariantReport, ...]:
    """The variants with each base first, and otherwise in the order in which the runs were given."""
    bases = [each.label for each in variants if each.is_base]
    return tuple(sorted(variants, key=lambda each: (bases.index(each.base), not each.is_base)))


def _samples(variant: Variant, equal: Equal) -> dict[str, Sample | None]:
    return {
        metric.key: sample(variant.seeds, [value(run, metric.key, equal) for run in variant.runs]) for metric in METRICS
    }


def _variant_report(variant: Variant, group: Group, samples: dict[str, dict[str, Sample | None]]) -> VariantReport:
    base, mine = group.bases[variant.label], samples[variant.label]
    if base == variant.label:
        return VariantReport(variant, base, mine, {}, {}, {})
    ratios = {metric.key: ratio(mine[metric.key], samples[base][metric.key]) for metric in METRICS}
    return VariantReport(
        variant,
        base,
        mine,
        ratios,
        {key: saved(ratios[key]) for key, _ in SAVINGS},
        {key: gained(ratios[key]) for key, _ in GAINS},
    )
