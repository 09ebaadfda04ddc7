"""The report as one HTML page that loads nothing."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from postprocess.compare import published, view
from postprocess.compare.analysis import GroupReport, Report
from postprocess.compare.plots import plots
from postprocess.compare.variants import shown_value
from postprocess.compare.view import Cell


def to_html(report: Report) -> str:
    """The whole report. Every text from a run is escaped; only the plots are markup already."""
    environment = Environment(
        loader=PackageLoader("postprocess.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        groups=[_group(group, len(report.groups)) for group in report.groups],
        notes=report.notes,
        excluded=report.excluded,
        published=_published(),
        cell=_cell,
    )


def _group(group: GroupReport, total: int) -> dict[str, Any]:
    return {
        "title": view.title(group, total),
        "separation": group.separation,
        "notes": group.notes,
        "blocks": view.blocks(group),
        "plots": plots(group, f"group{group.number}"),
        "labels": list(view.labels(group)),
        "agreed": [(key, shown_value(value)) for key, value in group.group.agreed.items()],
    }


def _published() -> dict[str, Any]:
    return {
        "label": published.LABEL,
        "setup": published.SETUP,
        "methods": [published.FPFT.method, published.PEFT.method],
        "rows": view.published_rows(),
        "derivation": published.derivation(),
    }


def _cell(cell: Cell, kind: str = "") -> Markup:
    """A table cell with its range below."""
    start = Markup('<td class="{}">').format(kind) if kind else Markup("<td>")
    below = Markup('<span class="range">({})</span>').format(cell.range) if cell.range else Markup()
    return start + Markup("{}").format(cell.text) + below + Markup("</td>")
