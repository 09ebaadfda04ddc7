"""Collectives over the host's network, whatever the training's own are."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


class GlooPeers:
    """The ranks, over a process group of their own: it can be used from another thread than the training's."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._group = dist.new_group(backend="gloo")

    def all_gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values
