"""The report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from postprocess.compare import published, view
from postprocess.compare.analysis import GroupReport, Report
from postprocess.compare.view import Block

# What could start markup in a name: HTML, emphasis, code, links, table cells.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|&])")


def to_markdown(report: Report) -> str:
    """The whole report."""
    lines = ["# Comparison of runs", ""]
    for group in report.groups:
        lines += [f"## {escape(view.title(group, len(report.groups)))}", "", *_group(group)]
    lines += _list("Notes", report.notes)
    lines += _list("Not compared", [f"{each.name}: {each.reason}" for each in report.excluded])
    lines += _published()
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """``text`` so that Markdown shows it as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _group(group: GroupReport) -> list[str]:
    lines = [f"- {escape(line)}" for line in group.separation]
    lines += [""] if lines else []
    for block in view.blocks(group):
        lines += [*_table(block), ""]
        lines += [*_savings(block), ""] if block.savings else []
    lines += [*(f"- {escape(note)}" for note in group.notes), ""]
    rows = [[escape(cell) for cell in row] for row in view.labels(group)]
    return [*lines, *_grid(["variant", "repeats", "runs"], rows, right=False), ""]


def _table(block: Block) -> list[str]:
    head = ["", f"{escape(block.base)}"]
    for label in block.others:
        head += [escape(label), f"ratio to {escape(block.base)}"]
    rows = []
    for row in block.rows:
        cells = [row.base, *(cell for pair in row.others for cell in pair)]
        indent = "&nbsp;&nbsp;" if row.label.startswith(" ") else ""
        rows.append([indent + escape(row.label), *(cell.line for cell in cells)])
    return _grid(head, rows)


def _savings(block: Block) -> list[str]:
    head = [f"against {escape(block.base)}", *(escape(label) for label in block.others)]
    return _grid(head, [[label, *(cell.line for cell in cells)] for label, cells in block.savings])


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]], right: bool = True) -> list[str]:
    rule = ["---", *(["---:" if right else "---"] * (len(head) - 1))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _list(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {escape(line)}" for line in lines), ""] if lines else []


def _published() -> list[str]:
    rows = [list(row) for row in view.published_rows()]
    return [
        f"## {published.LABEL}",
        "",
        f"{published.SETUP}. Corrected; what was published, and how the corrected figures follow from it:",
        "",
        *_grid(["", published.FPFT.method, published.PEFT.method], rows),
        "",
        *(f"- {line}" for line in published.derivation()),
    ]
