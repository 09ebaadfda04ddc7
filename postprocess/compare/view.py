"""The numbers as text: blocks of rows and columns that terminal, Markdown and HTML lay out each in their way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from launcher.units import DASH
from postprocess.compare import published
from postprocess.compare.analysis import GroupReport, VariantReport
from postprocess.compare.metrics import EQUAL_COST, EQUAL_STEPS, GAINS, METRICS, SAVINGS, Equal, Metric
from postprocess.compare.statistics import Interval, Sample


@dataclass(frozen=True)
class Cell:
    """A number, and in brackets its range over repeats where there is one."""

    text: str
    range: str = ""

    @property
    def line(self) -> str:
        return f"{self.text} ({self.range})" if self.range else self.text


EMPTY = Cell(DASH)


@dataclass(frozen=True)
class Row:
    """A metric: the base's cell, and for each other variant its cell and the ratio's."""

    label: str
    base: Cell
    others: tuple[tuple[Cell, Cell], ...]


@dataclass(frozen=True)
class Block:
    """A base and the variants that are a ratio to it."""

    base: str
    others: tuple[str, ...]
    rows: tuple[Row, ...]
    savings: tuple[tuple[str, tuple[Cell, ...]], ...]
    """label and a cell for each of ``others``"""


# Unit, divisor, decimals.
Scale = tuple[str, float, int]


def blocks(report: GroupReport) -> list[Block]:
    """The tables of a group, one for each base."""
    return [_block(report.equal, members) for members in report.blocks]


def title(report: GroupReport, total: int) -> str:
    """What the group compares; its number when there are several."""
    methods = {variant.variant.settings["method.name"] for variant in report.variants}
    kind = "FPFT against PEFT" if methods == {"full", "lora"} else "Comparison"
    number = f"Group {report.number} of {total}: " if total > 1 else ""
    return f"{number}{kind}: {report.title}"


def repeats(variant: VariantReport) -> str:
    """1 run, or 2 runs (seeds 0, 1)."""
    seeds = sorted(variant.variant.seeds)
    return "1 run" if len(seeds) == 1 else f"{len(seeds)} runs (seeds {', '.join(map(str, seeds))})"


def published_rows() -> list[tuple[str, str, str]]:
    """The published comparison, corrected: label, FPFT, PEFT."""
    full, lora = published.corrected(published.FPFT), published.corrected(published.PEFT)
    return [
        ("trainable parameters", f"{full.trainable_params:,}", f"{lora.trainable_params:,}"),
        ("samples/s, all replicas", f"{full.samples_per_second:.2f}", f"{lora.samples_per_second:.2f}"),
        (
            "samples/s, per replica",
            f"{full.samples_per_second_per_replica:.3f}",
            f"{lora.samples_per_second_per_replica:.3f}",
        ),
        ("training time, min", f"{full.minutes:.0f}", f"{lora.minutes:.0f}"),
        ("MFU, padding counted", f"~{full.mfu_padded * 100:.0f} %", f"~{lora.mfu_padded * 100:.0f} %"),
        ("time and cost saved", DASH, percent(published.time_saved())),
        ("throughput gained", DASH, percent(published.throughput_gained())),
    ]


def percent(share: float) -> str:
    """0.411 as 41.1 %."""
    return f"{share * 100:.1f} %"


def _block(equal: Equal, members: list[VariantReport]) -> Block:
    base, *others = members
    rows = [row for metric in METRICS if (row := _row(metric, equal, base, others)) is not None]
    savings = [(label, tuple(_share(each.savings[key]) for each in others)) for key, label in SAVINGS]
    gains = [(label, tuple(_share(each.gains[key]) for each in others)) for key, label in GAINS]
    kept = [line for line in savings + gains if any(cell != EMPTY for cell in line[1])]
    return Block(base.label, tuple(each.label for each in others), tuple(rows), tuple(kept))


def _row(metric: Metric, equal: Equal, base: VariantReport, others: list[VariantReport]) -> Row | None:
    """None when no variant has the number."""
    samples = [each.samples[metric.key] for each in (base, *others)]
    present = [each for each in samples if each is not None]
    if not present:
        return None
    # The parts of the wall time are in its unit, so that one sees what they add up to.
    scaled_by = "wall_seconds" if metric.kind == "seconds" else metric.key
    largest = max((found.high for each in (base, *others) if (found := each.samples[scaled_by])), default=0.0)
    unit, divisor, decimals = _scale(metric.kind, largest)
    write = _writer(divisor, decimals)
    label = _label(metric, equal) + (f", {unit}" if unit else "")
    cells = [_cell(each, write) for each in samples]
    ratios = [_ratio(each.ratios[metric.key], metric.kind) for each in others]
    return Row(label, cells[0], tuple(zip(cells[1:], ratios, strict=True)))


def _label(metric: Metric, equal: Equal) -> str:
    """The name; of losses at equal steps or cost, with the step or the amount."""
    if metric.key == EQUAL_STEPS:
        return f"{metric.label} (step {equal.step})"
    if metric.key == EQUAL_COST and equal.budget is not None:
        if equal.budget.unit == "usd":
            return f"{metric.label} ({equal.budget.amount:.4g} USD of steps)"
        return f"held-out loss at equal training time ({equal.budget.amount:.4g} s)"
    return metric.label


def _scale(kind: str, largest: float) -> Scale:
    """How numbers of a row are written, so that the row's largest is easy to read."""
    if kind == "seconds":
        return _time_scale(largest)
    if kind == "rate":
        return "", 1, 0 if largest >= 10_000 else 1 if largest >= 1000 else 2 if largest >= 1 else 4
    if kind == "usd":
        return "USD", 1, 2 if largest >= 10 else 4
    if kind == "step_seconds":
        return "s", 1, 2 if largest >= 10 else 3
    if kind == "bytes":
        return "GB", 1e9, 2
    return {"count": ("", 1, 0), "share": ("%", 0.01, 2), "loss": ("", 1, 4)}[kind]


def _time_scale(largest: float) -> Scale:
    if largest < 600:
        return "s", 1, 1
    return ("min", 60, 1) if largest < 3 * 3600 else ("h", 3600, 2)


def _writer(divisor: float, decimals: int) -> Callable[[float], str]:
    """Writes a number; one too small for its decimals has two significant digits, not 0.00."""

    def write(number: float) -> str:
        scaled = number / divisor
        return f"{scaled:.2g}" if 0 < abs(scaled) < 10**-decimals else f"{scaled:,.{decimals}f}"

    return write


def _cell(found: Sample | None, write: Callable[[float], str]) -> Cell:
    if found is None:
        return EMPTY
    low, high = write(found.low), write(found.high)
    return Cell(write(found.median), "" if low == high else f"{low} to {high}")


def _ratio(found: Interval | None, kind: str) -> Cell:
    """Losses differ by less than other numbers, so their ratios have a digit more."""
    decimals = 3 if kind == "loss" else 2
    return _interval(found, _writer(1, decimals), "x")


def _share(found: Interval | None) -> Cell:
    return _interval(found, lambda share: f"{share * 100:.1f}", " %")


def _interval(found: Interval | None, write: Callable[[float], str], unit: str) -> Cell:
    if found is None:
        return EMPTY
    low, high = (None if end is None else write(end) for end in (found.low, found.high))
    return Cell(write(found.value) + unit, "" if low == high else f"{low} to {high}")


def labels(report: GroupReport) -> Iterable[tuple[str, str, str]]:
    """Label, repeats and run names of each variant."""
    for each in report.variants:
        yield each.label, repeats(each), ", ".join(run.name for run in each.variant.runs)
