"""What Slurm is asked for by a job, and its batch script: pure functions of the job and the configuration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.config.schema import ClusterConfig
from launcher.jobs.job import Job, Resources


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
    job: Job,
    configured: Mapping[str, str],
    cluster: ClusterConfig,
    code: Path,
    depends_on: str | None = None,
) -> dict[str, Any]:
    """submitit's parameters of one job; ``configured`` are its variables, ``code`` is the snapshot that it runs."""
    asked, extra = job.resources, sbatch_options(cluster.sbatch_args)
    return {
        "job_name": name,
        "partition": asked.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": asked.time_limit_min,
        "nodes": job.nodes,
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
