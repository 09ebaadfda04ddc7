"""What to know before a number of the report is quoted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from postprocess.compare.runs import Run, lookup
from postprocess.compare.statistics import paired
from postprocess.compare.variants import Group, differences, shown_value

MIN_STEPS = 10
# Steps are nearly equal work: p95 was seen here at 1.1 to 1.3 medians, and beside other work at 2 to 7.
UNEVEN = 2.0


def group_notes(group: Group) -> list[str]:
    """Every reason not to take the group's ratios at face value, and where its prices are from."""
    found = [
        _one_variant(group),
        _no_full_fine_tuning(group),
        *_other_seeds(group),
        _few_steps(group),
        *_disturbed(group),
        *_resumed(group),
        _no_repeats(group),
        _other_steps(group),
        _partly_missing(group),
        *_prices(group.runs),
    ]
    return [note for note in found if note]


def separation(number: int, groups: Sequence[Group]) -> list[str]:
    """Why group ``number``, counted from 1, is not compared with the ones before it: keys with both values."""
    mine = groups[number - 1]
    return [
        f"no ratio to group {other}: "
        + "; ".join(
            f"{key}: {shown_value(here)} here, {shown_value(there)} there"
            for key, here, there in differences(mine, groups[other - 1])
        )
        for other in range(1, number)
    ]


def _one_variant(group: Group) -> str | None:
    return None if len(group.variants) > 1 else "there is one variant in this group, so nothing to compare it with"


def _no_full_fine_tuning(group: Group) -> str | None:
    if len(group.variants) < 2 or any(variant.is_full for variant in group.variants):
        return None
    return f"there is no full fine-tuning in this group: the base is its first variant, {group.variants[0].label}"


def _other_seeds(group: Group) -> list[str]:
    """Ratios of repeats that can't be paired have no range."""
    found = []
    for variant in group.variants:
        base = group.variant(group.bases[variant.label])
        repeated = max(len(variant.seeds), len(base.seeds)) > 1
        if variant is not base and repeated and not paired(variant.seeds, base.seeds):
            found.append(
                f"the ratios of {variant.label} have no range: its seeds ({_listed(variant.seeds)}) "
                f"don't pair with those of {base.label} ({_listed(base.seeds)})"
            )
    return found


def _few_steps(group: Group) -> str | None:
    fewest = min(int(run.train.get("measured_steps") or 0) for run in group.runs)
    if fewest >= MIN_STEPS:
        return None
    return f"do not quote these throughputs and ratios: a run has only {fewest} measured steps (at least {MIN_STEPS})"


def _disturbed(group: Group) -> list[str]:
    """Steps of a run that took much longer than its others: something else had the machine."""
    found = []
    for run in group.runs:
        median, slow = run.train.get("step_seconds_p50"), run.train.get("step_seconds_p95")
        if median and slow and slow > UNEVEN * median:
            found.append(
                f"do not quote the throughput of {run.name}: its p95 step took {slow / median:.1f} times its "
                "median, so something else used the machine; compare medians of steps, or run it again"
            )
    return found


def _resumed(group: Group) -> list[str]:
    """Runs whose time is the sum of several attempts'."""
    return [
        f"{run.name} was started {run.train['attempts']} times: its times are those of the steps that were kept, its "
        f"cost holds {run.train.get('lost_seconds') or 0:.1f} s more for {run.train.get('lost_steps') or 0} steps that "
        "were done again"
        for run in group.runs
        if (run.train.get("attempts") or 1) > 1
    ]


def _no_repeats(group: Group) -> str | None:
    single = [variant.label for variant in group.variants if len(variant.runs) == 1]
    if not single or len(group.variants) < 2:
        return None
    which = "any variant" if len(single) == len(group.variants) else "; ".join(single)
    return f"do not quote these ratios: there are no repeats of {which} (seed=0,1,2 makes three)"


def _other_steps(group: Group) -> str | None:
    """Time and cost saved mean little when it was not the same work."""
    steps = {variant.label: {int(run.train["steps"]) for run in variant.runs} for variant in group.variants}
    if len(set.union(*steps.values())) == 1:
        return None
    listed = "; ".join(f"{label}: {_listed(found)}" for label, found in steps.items())
    return f"the runs took different numbers of steps ({listed}): their times and costs are not for the same work"


def _partly_missing(group: Group) -> str | None:
    """A variant has a number only when all of its repeats have it, which some readers would wonder about."""
    for variant in group.variants:
        evaluated = [len(run.evaluations) > 0 for run in variant.runs]
        if any(evaluated) and not all(evaluated):
            return f"{variant.label}: {evaluated.count(False)} of {len(evaluated)} runs have no evaluations"
    return None


def _prices(runs: Sequence[Run]) -> list[str]:
    """Where each price was read, and when."""
    stated: dict[str, None] = {}
    for run in runs:
        if run.price is not None:
            source = lookup(run.config, "accelerator.price_source") or "no source given"
            date = lookup(run.config, "accelerator.price_date") or "no date given"
            stated[f"price: {run.price:g} USD an hour of an instance ({source}, {date})"] = None
    return list(stated)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in sorted(values))
