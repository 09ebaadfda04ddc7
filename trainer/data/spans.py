"""Where the answers of conversations stand in their rows, and what of a row is kept when it is too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SPAN = np.dtype([("begin", "<u4"), ("end", "<u4")])
"""An answer with its end token, in tokens of its row."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowSpans:
    """The answers of all rows of a corpus."""

    spans: npt.NDArray[Any]
    """[answers] of SPAN, row after row"""
    ends: npt.NDArray[Any]
    """[rows]: where those of each row end in ``spans``"""

    def of(self, place: int) -> list[tuple[int, int]]:
        """The answers of a row."""
        found = self.spans[self._starts(np.array([place]))[0] : self.ends[place]]
        return [(int(begin), int(end)) for begin, end in found]

    def _starts(self, places: Integers) -> Integers:
        return np.where(places > 0, self.ends[places - 1], 0).astype(np.int64)

    def flat(self, places: Integers) -> tuple[Integers, npt.NDArray[Any]]:
        """For each answer of ``places``: the index of its row in ``places``, and its SPAN."""
        starts = self._starts(places)
        counts = np.asarray(self.ends[places], dtype=np.int64) - starts
        rows = np.repeat(np.arange(len(places)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self.spans[np.repeat(starts, counts) + within]

    def last_whole(self, places: Integers, room: int) -> Integers:
        """[places]: where the last answer ends that lies whole within ``room`` tokens; 0 where none does."""
        rows, spans = self.flat(places)
        ends = np.where(spans["end"] <= room, spans["end"], 0).astype(np.int64)
        found = np.zeros(len(places), dtype=np.int64)
        np.maximum.at(found, rows, ends)
        return found

    def trained(self, places: Integers, kept: Integers) -> int:
        """How many tokens the loss counts of the first ``kept`` tokens of each row. The first of a row is none."""
        rows, spans = self.flat(places)
        limit = kept[rows]
        begins = np.maximum(np.minimum(spans["begin"], limit), 1)
        return int((np.maximum(np.minimum(spans["end"], limit), begins) - begins).sum())


def kept_lengths(
    rows: npt.NDArray[Any], places: Sequence[int] | Integers, room: int, spans: RowSpans | None
) -> Integers:
    """[places]: how many tokens of each row are used of at most ``room``; 0 for one whose first prompt leaves no room
    for an answer. A prompt and its answer lose their end; a conversation ends with its last answer that fits, and where
    not even the first one does, that loses its end."""
    chosen = np.asarray(places, dtype=np.int64)
    found = rows[chosen]
    kept = np.minimum(found["length"].astype(np.int64), room)
    if spans is not None:
        long = np.flatnonzero(found["length"] > room)
        whole = spans.last_whole(chosen[long], room)
        kept[long] = np.where(whole > 0, whole, room)
    kept[found["prompt"] >= room] = 0
    return kept
