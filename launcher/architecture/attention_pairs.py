"""How many query/key pairs causal attention computes in a document, by how far each layer reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

ALL, WINDOW, CHUNK, NONE = "all", "window", "chunk", "none"


class Extent(NamedTuple):
    """How far a layer's attention reaches: over all before a query, a window of ``size`` keys with its own, chunks of
    ``size`` positions from a document's start, or nowhere (a layer without attention)."""

    kind: str = ALL
    size: int | None = None


Extents = Sequence[Extent]
"""of each layer; none of them: all layers reach over all of a document"""


def pairs(lengths: Any, extent: Extent) -> Any:
    """Pairs in documents of ``lengths`` tokens, a number or an array of them: floating point, of numpy or torch."""
    size = extent.size
    if extent.kind == NONE:
        return lengths * 0
    if size is None:
        return _triangle(lengths)
    if extent.kind == WINDOW:
        inside = (lengths + size - abs(lengths - size)) / 2  # the smaller of both, for whatever kind of array
        return _triangle(inside) + (lengths - inside) * size
    whole = lengths // size
    return whole * _triangle(size) + _triangle(lengths - whole * size)


def _triangle(length: Any) -> Any:
    return length * (length + 1) / 2


def mean_pairs(lengths: Any, extents: Extents = ()) -> Any:
    """The mean of the layers, for each document."""
    kinds = dict.fromkeys(extents or [Extent()])
    total = sum(pairs(lengths, kind) * (list(extents).count(kind) or 1) for kind in kinds)
    return total / max(1, len(extents))
