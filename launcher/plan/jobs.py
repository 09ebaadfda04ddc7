"""The processes that a run's stages are: what would be started, or submitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.schema import Config, world_size


@dataclass(frozen=True)
class Job:
    """One stage of a run."""

    stage: str
    instances: int
    processes: int
    """over all instances"""
    how: str


def instances(config: Config) -> int:
    """Machines of the training stage."""
    each = config.accelerator.devices_per_instance
    return 1 if each is None else math.ceil(world_size(config) / each)


def jobs(config: Config) -> list[Job]:
    """The stages in their order: training takes the accelerators, the others one process of this machine."""
    return [_training(config) if stage == "train" else Job(stage, 1, 1, "one process") for stage in config.stages]


def _training(config: Config) -> Job:
    machines, processes = instances(config), world_size(config)
    if processes == 1:
        return Job("train", 1, 1, "one process")
    kind = "this machine" if config.accelerator.devices_per_instance is None else f"{machines} x {_kind(config)}"
    return Job("train", machines, processes, f"torchrun, {processes // machines} processes on each of {kind}")


def _kind(config: Config) -> str:
    return config.accelerator.name
