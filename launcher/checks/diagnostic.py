"""One thing in a configuration that cannot work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from launcher.config.schema import Config


@dataclass(frozen=True)
class Diagnostic:
    """One thing that cannot work."""

    key: str
    value: Any
    why: str
    remedy: str = ""

    def __str__(self) -> str:
        value = "null" if self.value is None else self.value
        return f"{self.key}={value}: {self.why}" + (f"; {self.remedy}" if self.remedy else "")


Check = Callable[[Config], Iterator[Diagnostic]]
