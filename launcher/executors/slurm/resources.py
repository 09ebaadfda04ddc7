"""What a stage's job asks Slurm for, and its batch script: pure functions of the configuration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.schema import ClusterConfig, Config, world_size
from launcher.jobs.variables import ON_ACCELERATOR

TRAIN, REPORT = "train", "report"


@dataclass(frozen=True)
class Resources:
    """Of one job."""

    nodes: int
    processes_per_node: int
    """started by the one task that Slurm starts on each node"""
    partition: str | None
    time_limit_min: int
    exclusive: bool = False
    cpus: int | None = None
    """on each node"""
    memory_gb: int | None = None
    """on each node; 0: all of it"""
    gpus_per_node: int | None = None


def processes_per_node(config: Config) -> int:
    """Training processes on each node, at most all of them."""
    world = world_size(config)
    each = config.cluster.processes_per_node or config.accelerator.devices_per_instance or world
    return min(each, world)


def nodes_of_training(config: Config) -> int:
    """Nodes of the training stage. The configuration is checked: the processes fill them."""
    return world_size(config) // processes_per_node(config)


def resources(stage: str, config: Config) -> Resources:
    """What ``stage`` needs: training, and compiling for it, the accelerators' nodes, every other stage one process."""
    cluster = config.cluster
    if stage not in ON_ACCELERATOR:
        small = cluster.small
        return Resources(
            nodes=1,
            processes_per_node=1,
            partition=small.partition or cluster.partition,
            time_limit_min=small.time_limit_min,
            cpus=small.cpus,
            memory_gb=small.memory_gb,
        )
    each = processes_per_node(config)
    return Resources(
        nodes=nodes_of_training(config),
        processes_per_node=each,
        partition=cluster.partition,
        time_limit_min=cluster.time_limit_min if stage == TRAIN else cluster.compile_time_limit_min,
        exclusive=cluster.exclusive,
        cpus=cluster.cpus,
        # --exclusive alone takes all CPUs, but only the partition's default of memory.
        memory_gb=0 if cluster.exclusive and cluster.memory_gb is None else cluster.memory_gb,
        gpus_per_node=each if config.accelerator.device == "cuda" else None,
    )


def dependency(after_success: list[str], after_end: list[str]) -> str | None:
    """Slurm's --dependency: all of them must hold."""
    parts = []
    if after_success:
        parts.append(":".join(["afterok", *after_success]))
    if after_end:
        parts.append(":".join(["afterany", *after_end]))
    return ",".join(parts) or None


def sbatch_options(lines: list[str]) -> dict[str, Any]:
    """``--name=value`` and ``--flag`` as submitit takes them."""
    pairs = (line.removeprefix("--").partition("=") for line in lines)
    return {name: value if separator else True for name, separator, value in pairs}


def parameters(
    name: str,
    asked: Resources,
    configured: Mapping[str, str],
    cluster: ClusterConfig,
    code: Path,
    depends_on: str | None = None,
) -> dict[str, Any]:
    """submitit's parameters of one job; ``configured`` are its variables, ``code`` is the snapshot that it runs."""
    extra = sbatch_options(cluster.sbatch_args)
    return {
        "job_name": name,
        "partition": asked.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": asked.time_limit_min,
        "nodes": asked.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": asked.cpus,
        "gpus_per_node": asked.gpus_per_node,
        "exclusive": True if asked.exclusive else None,
        "dependency": depends_on,
        "signal_delay_s": leave_seconds(asked, cluster),
        "stderr_to_stdout": True,
        "wckey": None,
        "setup": setup_lines(configured, cluster, code),
        "srun_args": srun_options(cluster, code, asked),
        "additional_parameters": {
            # A stage that can't start any more is cancelled; it would wait for ever.
            **({"kill-on-invalid-dep": "yes"} if depends_on else {}),
            **({} if asked.memory_gb is None else {"mem": f"{asked.memory_gb}G"}),
            **({} if "no-requeue" in extra else {"requeue": True}),  # whatever the site's default
            **extra,
        },
    }


def leave_seconds(asked: Resources, cluster: ClusterConfig) -> int:
    """When the signal before the time limit comes: never before half of the time is over."""
    return min(cluster.leave_seconds, asked.time_limit_min * 30)


def setup_lines(configured: Mapping[str, str], cluster: ClusterConfig, code: Path) -> list[str]:
    """Shell lines of the batch script. srun hands what they export to every node, and to a step that it tries again."""
    # What is submitted comes before modules of the user: an installed copy of the project may be another one.
    theirs = "${PYTHONPATH:+:$PYTHONPATH}"  # of the shell that submits, as the rest of its environment
    if "PYTHONPATH" in configured:
        theirs = shlex.quote(f":{configured['PYTHONPATH']}") if configured["PYTHONPATH"] else ""
    settings = {"PYTHONSAFEPATH": "1", **configured}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in settings.items() if name != "PYTHONPATH"]
    return [*exports, f"export PYTHONPATH={shlex.quote(str(code))}{theirs}", *cluster.setup]


def srun_options(cluster: ClusterConfig, code: Path, asked: Resources) -> list[str]:
    """Options of the one step. A task that is killed ends the step; started in the snapshot, Python can't find the
    project's packages in the directory of the user, where they may have been edited since."""
    cpus = [f"--cpus-per-task={asked.cpus}"] if asked.cpus else []  # since Slurm 22.05 srun doesn't take sbatch's
    resume = ["--auto-resume=1"] if cluster.auto_resume else []
    return ["--kill-on-bad-exit=1", "--export=ALL", f"--chdir={code}", *cpus, *resume, *cluster.srun_args]


def batch_script(python: str, folder: Path, options: dict[str, Any]) -> str:
    """The text that sbatch gets for a task that submitit has pickled into ``folder``."""
    command = f"{shlex.quote(python)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return batch_file(command, folder, options)


def batch_file(command: str, folder: Path, options: dict[str, Any]) -> str:
    """The text that sbatch gets for a command, by submitit's own function, which also submits."""
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(command=command, folder=folder, **given(options))


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Options that have a value, but the working key, which submitit would name after itself."""
    return {name: value for name, value in options.items() if value is not None or name == "wckey"}
