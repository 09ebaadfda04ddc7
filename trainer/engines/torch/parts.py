"""Tensors in equal parts of their first axis on all ranks, as FSDP2 lays them: on devices and in checkpoints.

Of a tensor of n rows rank r of w has those from r * ceil(n / w) on, at most ceil(n / w) of them, and maybe none.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from trainer.checkpoints.parts import PARTS, part_file
from trainer.checkpoints.state import RestoredState
from trainer.engines.state import Tensors


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of ``tensor``, in the same memory: of what isn't in parts all of it."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` of all ranks together, on each. All ranks call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(parameter: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """``part`` as this rank's of a tensor that lies as ``parameter`` does; itself where that is whole, or it is one
    number."""
    if not isinstance(parameter, DTensor) or part.dim() == 0:
        return part
    mesh, placements, device = parameter.device_mesh, parameter.placements, parameter.device
    size, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(part.to(device), mesh, placements, run_check=False, shape=size, stride=stride)


def rows_of(rows: int, rank: int, ranks: int) -> tuple[int, int]:
    """First and last (exclusive) of a rank's rows."""
    each = -(-rows // ranks)
    return min(rank * each, rows), min((rank + 1) * each, rows)


class Regrouped:
    """A checkpoint of any number of ranks, as this rank of ``ranks`` would have written it. ``tensors`` takes the names
    that one rank writes; what ranks don't share, such as random generators, is read from ``stored``."""

    def __init__(self, stored: RestoredState, rank: int, ranks: int, whole: Collection[str]) -> None:
        """``ranks`` is 1 where each rank has all; ``whole``: names of weights that are not in parts here."""
        self.stored, self.rank, self.ranks, self.whole = stored, rank, ranks, whole
        self.there = 1
        if stored.has(PARTS):
            self.there, self.whole = stored.document(PARTS)["ranks"], stored.document(PARTS)["whole"]

    @property
    def step(self) -> int:
        return self.stored.step

    def has(self, name: str) -> bool:
        return self.stored.has(name)

    def document(self, name: str) -> Any:
        return self.stored.document(name)

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        return {key: tuple(tensor.shape) for key, tensor in self.tensors(name).items()}

    def tensors(self, name: str) -> Tensors:
        if self.ranks == self.there:
            return self.stored.tensors(part_file(name, self.rank % self.there, self.there))
        files = [part_file(name, rank, self.there) for rank in range(self.there)]
        rows: dict[str, int] = {}
        for file in files:
            for key, shape in self.stored.shapes(file).items():
                if shape and key not in self.whole:
                    rows[key] = rows.get(key, 0) + shape[0]
        wanted = {key: rows_of(count, self.rank, self.ranks) for key, count in rows.items()}
        found: dict[str, list[torch.Tensor]] = {}
        begins = dict.fromkeys(rows, 0)
        for file in files:
            for key, tensor in self.stored.tensors(file).items():
                if key not in rows:
                    found[key] = [tensor]
                    continue
                (first, last), begin = wanted[key], begins[key]
                begins[key] += len(tensor)
                found.setdefault(key, []).append(tensor[max(first - begin, 0) : max(last - begin, 0)])
        return {key: torch.cat(pieces) if key in rows else pieces[0] for key, pieces in found.items()}
