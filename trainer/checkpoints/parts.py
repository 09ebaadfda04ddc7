"""How the weights of a checkpoint lie in the files that several ranks have written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

PARTS = "parts.json"
"""the document of such a checkpoint: what ``Layout`` says"""


def part_file(name: str, rank: int, ranks: int) -> str:
    """The file that has this rank's part of what one rank alone writes as ``name``."""
    stem, _, suffix = name.rpartition(".")
    return name if ranks == 1 else f"{stem}.rank-{rank:05d}-of-{ranks:05d}.{suffix}"


@dataclass(frozen=True)
class Layout:
    """Each tensor is cut along the axis that ``cuts`` names into ``tensor`` equal parts, or not at all; then each part
    by rows into as many as there are groups of ``tensor`` ranks next to each other."""

    ranks: int = 1
    tensor: int = 1
    whole: Collection[str] = ()
    """of tensors that every rank has all of"""
    cuts: Mapping[str, int] = field(default_factory=dict)
    """by a tensor's name; of the optimizer's by its parameter's"""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Layout:
        """Of a checkpoint's PARTS; those of before had no cuts."""
        tensor, cuts = document.get("tensor_parallel", 1), document.get("cuts", {})
        return cls(document["ranks"], tensor, frozenset(document["whole"]), cuts)

    def document(self) -> dict[str, Any]:
        written = {"ranks": self.ranks, "whole": sorted(self.whole)}
        return written if self.tensor == 1 else {**written, "tensor_parallel": self.tensor, "cuts": dict(self.cuts)}

    @property
    def groups(self) -> int:
        return self.ranks // self.tensor

    def axis(self, key: str) -> int | None:
        """Along which a tensor is cut before its rows are; ``key``: its name, or "<parameter>.<of the optimizer>"."""
        found = self.cuts.get(key)
        return self.cuts.get(key.rpartition(".")[0]) if found is None else found

    def files(self, name: str) -> list[list[str]]:
        """The files of a group of ranks, group by group."""
        ranks = [part_file(name, rank, self.ranks) for rank in range(self.ranks)]
        return [ranks[group * self.tensor : (group + 1) * self.tensor] for group in range(self.groups)]

    def blocks(self, key: str, read: Callable[[int, int], torch.Tensor]) -> Iterator[torch.Tensor]:
        """The rows of a tensor, block after block. ``read`` gives the part that a rank of a group has of it, by the
        numbers of the group and of the rank in it."""
        axis, groups, ranks = self.axis(key), range(self.groups), range(self.tensor)
        if key in self.whole:
            yield read(0, 0)
        elif axis is None:
            yield from (read(group, 0) for group in groups)
        elif axis == 0:
            yield from (read(group, rank) for rank in ranks for group in groups)
        else:
            yield from (torch.cat([read(group, rank) for rank in ranks], dim=axis) for group in groups)
