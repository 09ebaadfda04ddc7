"""The report in a terminal of any width: as many variants beside each other as fit, the base again in each table."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from postprocess.compare import published, view
from postprocess.compare.analysis import GroupReport, Report
from postprocess.compare.view import Block, Cell

# Leaves room in 80 columns for a base, a variant and a ratio with their ranges; most labels are shorter than the other.
_NARROW, _LABEL_WIDTH, _LABEL_WIDTH_NARROW = 100, 34, 20


def print_report(console: Console, report: Report) -> None:
    """Tables, notes, excluded runs and the published comparison in short."""
    for group in report.groups:
        console.print(f"\n[bold]{escape(view.title(group, len(report.groups)))}[/bold]")
        _print_group(console, group)
    for note in report.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)
    for excluded in report.excluded:
        console.print(f"not compared: {escape(excluded.name)}: {escape(excluded.reason)}", soft_wrap=True)
    if report.groups:
        console.print(f"\n{escape(_published())}")


def tables(block: Block, width: int) -> list[Table]:
    """The block's tables, each at most ``width`` wide unless one variant alone is wider; then cells are folded."""
    label_width = _LABEL_WIDTH_NARROW if width < _NARROW else _LABEL_WIDTH
    found: list[Table] = []
    start = 0
    while start < len(block.others) or not found:
        end = start + 1
        while end < len(block.others) and _width(_table(block, range(start, end + 1), label_width)) <= width:
            end += 1
        found.append(_table(block, range(start, min(end, len(block.others))), label_width))
        start = end
    return found


def _print_group(console: Console, group: GroupReport) -> None:
    for line in group.separation:
        console.print(escape(line), soft_wrap=True)
    for block in view.blocks(group):
        for table in tables(block, console.width):
            console.print(table)
            console.print()
    for note in group.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)
    for label, repeats, names in view.labels(group):
        console.print(escape(f"{label}: {repeats}: {names}"), soft_wrap=True)  # a broken path can't be copied


def _width(table: Table) -> int:
    """What the table takes when nothing in it is wrapped."""
    wide = Console(width=10_000)
    return wide.measure(table).maximum


def _table(block: Block, shown: range, label_width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("", overflow="fold")
    table.add_column(_heading(block.base), justify="right", overflow="fold")
    for index in shown:
        table.add_column(_heading(block.others[index]), justify="right", overflow="fold")
        table.add_column("ratio", justify="right", overflow="fold")
    for row in block.rows:
        others = [cell for index in shown for cell in row.others[index]]
        table.add_row(_fold(row.label, label_width), *(_lines(cell) for cell in (row.base, *others)))
    _add_savings(table, block, shown, label_width)
    return table


def _add_savings(table: Table, block: Block, shown: Sequence[int], label_width: int) -> None:
    if not block.savings or not shown:
        return
    table.add_section()
    for label, cells in block.savings:
        # Savings belong to the ratio: they stand in its column.
        others = [text for index in shown for text in ("", _lines(cells[index]))]
        table.add_row(_fold(label, label_width), "", *others)


def _heading(label: str) -> str:
    return escape(label.replace(", ", "\n"))


def _lines(cell: Cell) -> str:
    """The range below the number: beside it, three columns would not fit into 80."""
    return escape(f"{cell.text}\n({cell.range})" if cell.range else cell.text)


def _fold(label: str, width: int) -> str:
    """The label in lines of at most ``width`` where words allow it; the parts of a sum are indented."""
    indent = label[: len(label) - len(label.lstrip())]
    lines = wrap(label.strip(), width - len(indent), break_long_words=False)
    return escape("\n".join(indent + line for line in lines))


def _published() -> str:
    rows = {label: f"{full} and {lora}" for label, full, lora in view.published_rows()}
    return (
        f"{published.LABEL}, and corrected: FPFT and LoRA of Llama 3 8B on one trn1.32xlarge: "
        f"{rows['samples/s, all replicas']} samples/s over all replicas, "
        f"{rows['trainable parameters']} trainable parameters, {rows['training time, min']} min: "
        f"{view.percent(published.time_saved())} of time and cost saved, "
        f"{view.percent(published.throughput_gained())} throughput gained, MFU {rows['MFU, padding counted']}."
    )
