"""The processes of a run on CPUs or devices, one or several a replica: torchrun starts them when there are several."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from launcher.config.schema import Config, offloads, world_size
from trainer import device
from trainer.checkpoints.peers import Peers, SingleProcess
from trainer.engines.gloo import GlooPeers

# As long as transformers, which joins again where the Trainer is made, lets a collective wait.
TIMEOUT = timedelta(minutes=30)


def backend_of(config: Config) -> str | None:
    """What collectives are made with. None in one process: accelerate would refuse to name one that it doesn't use."""
    return config.accelerator.backend if world_size(config) > 1 else None


def offloading_group(config: Config) -> dist.ProcessGroup:
    """A group of all ranks for tensors on devices and for those in host memory: where parts of a model lie, their norm
    is summed and they are put together. All ranks call it."""
    accelerator = config.accelerator
    return dist.new_group(backend=f"{device.CPU}:gloo,{accelerator.device}:{accelerator.backend}", timeout=TIMEOUT)


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the run."""

    rank: int
    ranks: int
    device: torch.device
    counts: torch.device
    """where counts are summed over the ranks, in fp64 and int64: ``device``, or the host where that has neither"""
    gloo: Any = None
    """the group that sums them there; None: the training's own"""
    tensor: int = 1
    """ranks, next to each other, that are one replica together: they have the same rows"""

    @property
    def replicas(self) -> int:
        return self.ranks // self.tensor

    @property
    def replica(self) -> int:
        """The number of this rank's replica."""
        return self.rank // self.tensor

    @property
    def speaks(self) -> bool:
        """Whether this rank is the one of its replica whose counts are summed."""
        return self.rank % self.tensor == 0

    def all_reduce(self, values: torch.Tensor, op: Any = dist.ReduceOp.SUM) -> torch.Tensor:
        """``values``, which lie on ``counts``, reduced over the ranks in place. All ranks call it, with equal shapes
        and dtypes."""
        if self.ranks > 1:
            dist.all_reduce(values, op, group=self.gloo)
        return values

    def spread(self, tensors: dict[str, torch.Tensor]) -> None:
        """Give rank 0's ``tensors`` to all ranks, in place. All ranks call it, with equal names, shapes and dtypes."""
        if self.ranks > 1:
            for tensor in tensors.values():
                dist.broadcast(tensor, src=0)

    def peers(self) -> Peers:
        """The ranks, for another thread than the training's. All of them call it."""
        return SingleProcess() if self.ranks == 1 else GlooPeers(self.rank)


def join(config: Config) -> ProcessGroup:
    """Join torchrun's process group, if there is one, and take this process's device."""
    cpu = config.accelerator.device == device.CPU
    state = PartialState(cpu=cpu, backend=backend_of(config), timeout=TIMEOUT)
    if offloads(config) and not dist.is_initialized():
        # One process, which torchrun has not started: FSDP wants a group all the same.
        store: Any = vars(dist)["HashStore"]()  # which torch's annotations leave out
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    own, ranks, tensor = device.take(state.device), state.num_processes, config.parallelism.tensor_parallel
    if not device.has_fixed_shapes(own.type):
        return ProcessGroup(state.process_index, ranks, own, counts=own, tensor=tensor)
    gloo = dist.new_group(backend="gloo") if ranks > 1 else None
    return ProcessGroup(state.process_index, ranks, own, torch.device(device.CPU), gloo, tensor)


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
