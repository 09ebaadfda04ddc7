"""The processes that write one checkpoint together."""

from __future__ import annotations

from typing import Any, Protocol


class Peers(Protocol):
    """All ranks call ``all_gather`` equally often, in the same order."""

    rank: int

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank. Blocks until every rank has called."""
        ...


class SingleProcess:
    """One process."""

    rank = 0

    def all_gather(self, value: Any) -> list[Any]:
        return [value]
