"""The report's plots as inline SVG, each a white card that reads the same in light and dark mode."""

from __future__ import annotations

import html
import io
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from postprocess.compare.analysis import GroupReport, VariantReport
from postprocess.compare.curves import spending_unit, spent
from postprocess.compare.metrics import PARTS
from postprocess.compare.runs import Evaluation, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Paul Tol's bright scheme: told apart with every kind of colour vision, and each with a marker of its own.
_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#777777")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# His light scheme, for the parts of a whole: they must not look like variants.
_PART_COLOURS = ("#77AADD", "#EE8866", "#FFAABB", "#44BB99", "#EEDD88", "#99DDFF", "#AAAA00")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a name or a unit is a dollar sign
    "svg.fonttype": "path",  # looks the same whatever fonts the reader has
}
_WIDTH = 6.4
_LONGEST_NAME = 44

Draw = Callable[["Axes"], None]


@dataclass(frozen=True)
class Plot:
    """One figure."""

    title: str
    description: str
    """the same in words, for those who don't see it"""
    svg: str


def plots(group: GroupReport, prefix: str) -> list[Plot]:
    """The group's figures; those without a number in them are left out. ``prefix`` keeps ids on a page apart."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells when it builds its font cache
    made = [
        _bars(group, "Throughput", "samples_per_second", "samples/s, all replicas", 1.0),
        _time(group),
        _bars(group, "Peak memory, host", "peak_memory_bytes", "GB", 1e9),
        _bars(group, "Peak memory, device", "peak_device_memory_bytes", "GB", 1e9),
        _losses(group, "Held-out loss over trained tokens", "trained tokens", lambda _, each: each.trained_tokens),
        _losses_over_spending(group),
    ]
    present = [each for each in made if each is not None]
    return [
        Plot(title, words, _render(draw, title, words, height, f"{prefix}-{number}"))
        for number, (title, words, height, draw) in enumerate(present)
    ]


# Title, description, height in inches, and what draws it.
Sketch = tuple[str, str, float, Draw]


def _bars(group: GroupReport, title: str, key: str, unit: str, divisor: float) -> Sketch | None:
    """A bar for each variant's median, with the range of its repeats."""
    rows = [(each.label, found) for each in group.variants if (found := each.samples[key]) is not None]
    if not rows:
        return None
    numbers = [(found.median / divisor, found.low / divisor, found.high / divisor) for _, found in rows]

    def draw(axes: Axes) -> None:
        names = [_short(label) for label, _ in rows]
        errors = [[median - low for median, low, _ in numbers], [high - median for median, _, high in numbers]]
        bars = axes.barh(
            range(len(rows)), [median for median, _, _ in numbers], height=0.6, color=_colours(group, rows)
        )
        if any(low != high for _, low, high in numbers):
            axes.errorbar(
                [median for median, _, _ in numbers],
                range(len(rows)),
                xerr=errors,
                fmt="none",
                ecolor="#222222",
                capsize=4,
            )
        for bar, (median, _, high) in zip(bars, numbers, strict=True):
            axes.annotate(
                f"{median:#.3g}" if median < 1000 else f"{median:,.0f}",
                (max(median, high), bar.get_y() + bar.get_height() / 2),
                xytext=(5, 0), textcoords="offset points", va="center",
            )  # fmt: skip
        _horizontal(axes, names, unit)
        axes.set_xlim(0, max(high for _, _, high in numbers) * 1.15)

    words = "; ".join(
        f"{label}: {median:,.4g} {unit}" for (label, _), (median, _, _) in zip(rows, numbers, strict=True)
    )
    return title, f"Bar chart, median of repeats with their range. {words}", _height(len(rows)), draw


def _time(group: GroupReport) -> Sketch | None:
    """The parts of the wall time, one after the other in a bar for each variant."""
    unit, divisor = _time_unit(group)
    rows = [(each.label, _parts(each, divisor)) for each in group.variants]
    present = [key for key in PARTS if any(parts[key] for _, parts in rows)]
    if not present:
        return None

    def draw(axes: Axes) -> None:
        left = [0.0] * len(rows)
        for key in present:
            widths = [parts[key] for _, parts in rows]
            colour = _PART_COLOURS[list(PARTS).index(key)]
            axes.barh(
                range(len(rows)), widths, left=left, height=0.6, label=PARTS[key], color=colour, edgecolor="white"
            )
            left = [start + width for start, width in zip(left, widths, strict=True)]
        _horizontal(axes, [_short(label) for label, _ in rows], f"wall time, {unit}")
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.42 / _height(len(rows)) - 0.12), ncol=len(present),
                    columnspacing=1.0, handlelength=1.0, handletextpad=0.4)  # fmt: skip

    words = "; ".join(
        f"{label}: " + ", ".join(f"{PARTS[key]} {parts[key]:.3g} {unit}" for key in present) for label, parts in rows
    )
    return "Wall time by part", f"Stacked bars, medians. {words}", _height(len(rows)) + 0.4, draw


def _losses_over_spending(group: GroupReport) -> Sketch | None:
    """Held-out loss over dollars, or over training time where a run has no price."""
    unit = spending_unit(group.group.runs)
    axis = "cost of the optimizer steps, USD" if unit == "usd" else "training time, s (no price is configured)"
    name = "cost" if unit == "usd" else "training time"
    return _losses(group, f"Held-out loss over {name}", axis, lambda run, each: spent(run, each, unit))


def _losses(group: GroupReport, title: str, axis: str, x: Callable[[Run, Evaluation], float]) -> Sketch | None:
    """A line for each run, of its variant's colour and marker."""
    lines = [
        (number, each.label, [(x(run, point), point.loss) for point in run.evaluations])
        for number, each in enumerate(group.variants)
        for run in each.variant.runs
        if len(run.evaluations) > 1
    ]
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        named: set[str] = set()
        for number, label, points in lines:
            name = None if label in named else _short(label)
            named.add(label)
            axes.plot(
                *zip(*points, strict=True), label=name, color=_colour(number), alpha=0.85, linewidth=1.6,
                marker=_MARKERS[number % len(_MARKERS)], markersize=5,
            )  # fmt: skip
        axes.set_xlabel(axis)
        axes.set_ylabel("nats a trained token")
        axes.set_xlim(left=0)
        axes.grid(True)
        axes.legend()

    words = "; ".join(
        f"{label}: from {points[0][1]:.4g} to {points[-1][1]:.4g} at {points[-1][0]:,.4g}" for _, label, points in lines
    )
    return title, f"Line chart, a line for each run, over {axis}. {words}", 3.4, draw


def _render(draw: Draw, title: str, words: str, height: float, prefix: str) -> str:
    """The figure as an SVG element for a page."""
    import matplotlib
    from matplotlib.figure import Figure

    # A figure without pyplot has no global state, and needs no display.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": prefix}):
        figure = Figure(figsize=(_WIDTH, height), facecolor="white")
        axes = figure.add_subplot()
        axes.set_title(title)
        draw(axes)
        text = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    return _inline(text.getvalue(), f"{title}. {words}", prefix)


def _inline(svg: str, words: str, prefix: str) -> str:
    """matplotlib's file as an element: no document type, ids that no other figure on the page has, a description."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", body)
    label = html.escape(words, quote=True)
    return body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _horizontal(axes: Axes, names: Sequence[str], unit: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first variant on top
    axes.set_xlabel(unit)
    axes.grid(True, axis="x")


def _height(bars: int) -> float:
    return 0.9 + 0.42 * bars


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _colours(group: GroupReport, rows: Sequence[tuple[str, Any]]) -> list[str]:
    """Each variant has the same colour in every figure."""
    labels = [each.label for each in group.variants]
    return [_colour(labels.index(label)) for label, _ in rows]


def _short(label: str) -> str:
    """A label over two lines, and cut where it would take the whole figure: its full text is in the tables."""
    text = label.replace(", ", "\n", 1)
    return "\n".join(
        f"{line[: _LONGEST_NAME - 3]}..." if len(line) > _LONGEST_NAME else line for line in text.split("\n")
    )


def _time_unit(group: GroupReport) -> tuple[str, float]:
    longest = max(run.train.get("wall_seconds") or 0.0 for run in group.group.runs)
    if longest < 600:
        return "s", 1.0
    return ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)


def _parts(variant: VariantReport, divisor: float) -> dict[str, float]:
    return {key: 0.0 if (found := variant.samples[key]) is None else found.median / divisor for key in PARTS}
