"""Names in a checkpoint that several ranks have written a part of the weights into."""

from __future__ import annotations

PARTS = "parts.json"
"""the document of such a checkpoint: "ranks" that wrote it, and the weights that each of them has "whole"; all other
tensors are the ranks' parts one after the other along the first axis"""


def part_file(name: str, rank: int, ranks: int) -> str:
    """The file that has this rank's part of what one rank alone writes as ``name``."""
    stem, _, suffix = name.rpartition(".")
    return name if ranks == 1 else f"{stem}.rank-{rank:05d}-of-{ranks:05d}.{suffix}"
