"""The processes that a run's stages are: what the plan prints is what an executor starts, or submits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.config.schema import Config, world_size
from launcher.jobs.executor import is_submitted
from launcher.jobs.variables import COMPILE, ON_ACCELERATOR

TRAIN, REPORT = "train", "report"


@dataclass(frozen=True)
class Resources:
    """What a job asks a cluster's queue for."""

    partition: str | None
    time_limit_min: int
    exclusive: bool = False
    cpus: int | None = None
    """on each node"""
    memory_gb: int | None = None
    """on each node; 0: all of it"""
    gpus_per_node: int | None = None


@dataclass(frozen=True)
class Job:
    """One stage of a run, or the report of a sweep."""

    stage: str
    nodes: int
    processes: int
    """over all nodes"""
    how: str
    resources: Resources
    elastic: bool = False
    """torchrun starts even a single process"""

    @property
    def processes_per_node(self) -> int:
        """Of each node; the configuration is checked: the processes fill them."""
        return self.processes // self.nodes

    @property
    def is_own_launcher(self) -> bool:
        """True for a stage that is one process on each node, which starts the others itself."""
        return self.stage == COMPILE


def instances(config: Config) -> int:
    """Machines of the training stage."""
    world = world_size(config)
    if is_submitted(config.cluster):
        return world // processes_per_node(config)
    each = config.accelerator.devices_per_instance
    return 1 if each is None else math.ceil(world / each)


def processes_per_node(config: Config) -> int:
    """Training processes on each node, at most all of them."""
    world = world_size(config)
    each = config.cluster.processes_per_node or config.accelerator.devices_per_instance or world
    return min(each, world)


def jobs(config: Config) -> list[Job]:
    """The stages in their order."""
    return [job_of(stage, config) for stage in config.stages]


def job_of(stage: str, config: Config) -> Job:
    """What ``stage`` needs: training, and compiling for it, the accelerators' nodes, every other stage one process."""
    if stage not in ON_ACCELERATOR:
        return Job(stage, 1, 1, "one process", _small(config))
    machines, processes = instances(config), world_size(config)
    asked = _on_accelerator(stage, config)
    if processes == 1 and config.accelerator.engine != "neuron":
        return Job(stage, 1, 1, "one process", asked)
    # optimum-neuron asks torchrun for the process group, also that of one process
    # (optimum/neuron/utils/torch_xla_and_neuronx_initialization.py: TORCHELASTIC_RUN_ID).
    elastic = stage == TRAIN and config.accelerator.engine == "neuron"
    return Job(stage, machines, processes, _in_words(stage, config, machines, processes), asked, elastic)


def _small(config: Config) -> Resources:
    small = config.cluster.small
    return Resources(
        partition=small.partition or config.cluster.partition,
        time_limit_min=small.time_limit_min,
        cpus=small.cpus,
        memory_gb=small.memory_gb,
    )


def _on_accelerator(stage: str, config: Config) -> Resources:
    cluster = config.cluster
    return Resources(
        partition=cluster.partition,
        time_limit_min=cluster.time_limit_min if stage == TRAIN else cluster.compile_time_limit_min,
        exclusive=cluster.exclusive,
        cpus=cluster.cpus,
        # --exclusive alone takes all CPUs, but only the partition's default of memory.
        memory_gb=0 if cluster.exclusive and cluster.memory_gb is None else cluster.memory_gb,
        gpus_per_node=processes_per_node(config) if config.accelerator.device == "cuda" else None,
    )


def _in_words(stage: str, config: Config, machines: int, processes: int) -> str:
    here = not is_submitted(config.cluster) and config.accelerator.devices_per_instance is None
    kind = "this machine" if here else f"{machines} x {config.accelerator.name}"
    each = "one process" if processes == machines else f"{processes // machines} processes"
    around = f"neuron_parallel_compile around {_trial_steps(config)} steps of " if stage == COMPILE else ""
    return f"{around}torchrun, {each} on each of {kind}"


def _trial_steps(config: Config) -> int:
    return 0 if config.accelerator.neuron is None else config.accelerator.neuron.trial_steps
