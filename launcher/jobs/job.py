"""The processes that a run's stages are: what would be started, or submitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.config.schema import Config, world_size
from launcher.executors.slurm.resources import nodes_of_training
from launcher.jobs.variables import COMPILE, ON_ACCELERATOR


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
    if config.cluster.name != "local":
        return nodes_of_training(config)
    each = config.accelerator.devices_per_instance
    return 1 if each is None else math.ceil(world_size(config) / each)


def jobs(config: Config) -> list[Job]:
    """The stages in their order: training and compiling take the accelerators, the others one process."""
    return [
        _on_accelerator(stage, config) if stage in ON_ACCELERATOR else Job(stage, 1, 1, "one process")
        for stage in config.stages
    ]


def _on_accelerator(stage: str, config: Config) -> Job:
    machines, processes = instances(config), world_size(config)
    if processes == 1 and config.accelerator.engine == "torch":
        return Job(stage, 1, 1, "one process")
    here = config.cluster.name == "local" and config.accelerator.devices_per_instance is None
    kind = "this machine" if here else f"{machines} x {_kind(config)}"
    each = "one process" if processes == machines else f"{processes // machines} processes"
    around = f"neuron_parallel_compile around {_trial_steps(config)} steps of " if stage == COMPILE else ""
    return Job(stage, machines, processes, f"{around}torchrun, {each} on each of {kind}")


def _trial_steps(config: Config) -> int:
    return 0 if config.accelerator.neuron is None else config.accelerator.neuron.trial_steps


def _kind(config: Config) -> str:
    return config.accelerator.name
