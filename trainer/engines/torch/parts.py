"""Tensors in equal parts on all ranks, as FSDP2 lays them: on devices and in checkpoints.

Of a tensor of n rows group r of w has those from r * ceil(n / w) on, at most ceil(n / w) of them, and maybe none. Under
tensor parallelism that holds for what the ranks of a group have each cut off before (trainer.checkpoints.parts.Layout).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from trainer.checkpoints.parts import PARTS, Layout, part_file
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
    # Not by DTensor.from_local, which moves a part that lies in host memory (cpu_offload) to the mesh's device.
    made = torch.empty_like(parameter.detach(), dtype=part.dtype)
    local(made).copy_(part)
    return made


def rows_of(rows: int, rank: int, ranks: int) -> tuple[int, int]:
    """First and last (exclusive) of a rank's rows."""
    each = -(-rows // ranks)
    return min(rank * each, rows), min((rank + 1) * each, rows)


class Regrouped:
    """A checkpoint of any layout, as this rank would have written it. ``tensors`` takes the names that one rank writes;
    what ranks don't share, such as random generators, is read from ``stored``."""

    def __init__(self, stored: RestoredState, rank: int, layout: Layout) -> None:
        """``layout``: of this run, one rank where each has all."""
        self.stored, self.rank, self.layout = stored, rank, layout
        self.there = Layout.read(stored.document(PARTS)) if stored.has(PARTS) else Layout(whole=layout.whole)

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
        here, there = self.layout, self.there
        if (here.ranks, here.tensor) == (there.ranks, there.tensor):
            return self.stored.tensors(part_file(name, self.rank % there.ranks, there.ranks))
        groups = [[self.stored.tensors(file) for file in files] for files in there.files(name)]
        return {key: self._own(key, groups) for key in groups[0][0]}

    def _own(self, key: str, groups: list[list[Tensors]]) -> torch.Tensor:
        """This rank's part of a tensor that lies in ``groups`` of ranks."""
        first = groups[0][0][key]
        if first.dim() == 0 or key in self.there.whole:
            return first
        tensor = torch.cat([*self.there.blocks(key, lambda group, rank: groups[group][rank][key])])
        axis = self.layout.axis(key)
        if axis is not None:
            tensor = tensor.chunk(self.layout.tensor, dim=axis)[self.rank % self.layout.tensor]
        begin, end = rows_of(len(tensor), self.rank // self.layout.tensor, self.layout.groups)
        return tensor[begin:end].clone()
