"""What a check has found: that all is well, a problem, or that it can't be known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OK, PROBLEM, WARNING, UNKNOWN, LATER = "ok", "problem", "warning", "unknown", "after deploy"


@dataclass(frozen=True)
class Finding:
    """The result of one check, or one of its problems."""

    check: str
    state: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}" if self.detail else f"{self.check}: {self.state}"


def found(check: str, problems: Iterable[str], ok: str = "") -> list[Finding]:
    """A finding for each problem, or that there is none."""
    return [Finding(check, PROBLEM, why) for why in problems] or [Finding(check, OK, ok)]
