"""Tables and numbers for people; JSON for programs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.findings import LATER, OK, PROBLEM, UNKNOWN, WARNING, Finding

_JSON_WIDTH = 98
_STYLES = {OK: "green", PROBLEM: "bold red", WARNING: "yellow", UNKNOWN: "yellow", LATER: "dim"}


def console() -> Console:
    """Of stdout. A pipe has no width: 100 columns, as in the documentation."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def table(*columns: str, header: bool = True) -> Table:
    """Without a box: what is wide wraps in its own column, and nothing is cut off."""
    result = Table(box=box.SIMPLE_HEAD if header else None, show_header=header, pad_edge=False)
    for name in columns:
        result.add_column(name, overflow="fold")
    return result


def compact_json(value: Any, indent: int = 0, lead: int = 0) -> str:
    """JSON in which what fits on a line is one line; ``lead`` characters stand before it on its first."""
    flat = json.dumps(value)
    if len(flat) + indent + lead <= _JSON_WIDTH or not isinstance(value, (dict, list)):
        return flat
    inner, deeper = " " * (indent + 2), indent + 2
    if isinstance(value, list):
        return f"[\n{_joined(inner + compact_json(member, deeper) for member in value)}\n{' ' * indent}]"
    keys = {json.dumps(key): member for key, member in value.items()}
    members = (f"{inner}{key}: {compact_json(member, deeper, len(key) + 2)}" for key, member in keys.items())
    return f"{{\n{_joined(members)}\n{' ' * indent}}}"


def _joined(lines: Iterable[str]) -> str:
    return ",\n".join(lines)


def print_findings(findings: Sequence[Finding], as_json: bool = False) -> None:
    """Every finding, and the sum."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    result = table("check", "result", "")
    for finding in findings:
        result.add_row(finding.check, f"[{_STYLES[finding.state]}]{finding.state}[/]", escape(finding.detail))
    console().print(result)
    print(summary(findings))


def summary(findings: Sequence[Finding]) -> str:
    """ "2 problems, 1 unknown", or that there is none."""
    count = Counter(finding.state for finding in findings)
    problems = "no problem" if not count[PROBLEM] else _plural(count[PROBLEM], "problem")
    warnings = [_plural(count[WARNING], "warning")] if count[WARNING] else []
    unknown = [f"{count[UNKNOWN]} unknown"] if count[UNKNOWN] else []
    return ", ".join([problems, *warnings, *unknown]) + (
        "; what is unknown may still be wrong" if count[UNKNOWN] else ""
    )


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")
