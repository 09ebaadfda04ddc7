"""Runs the stages of one run on this machine, in order, each as its own process in its own session.

Ctrl-C is the launcher's to handle: the stages do not share its terminal's process group. The first one, or a SIGTERM,
goes once as SIGINT to the processes that train, which end after their step; a second one kills them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from launcher.lifetime import LAUNCHER_PID, die_with_parent
from launcher.paths import ROOT
from launcher.rundir import RunDir
from launcher.schema import Config

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
POLL_SECONDS = 0.1

CommandOf = Callable[[str, Path, int], list[str]]


def stage_command(stage: str, run_dir: Path, replicas: int) -> list[str]:
    """The command line of one stage. torchrun starts the replicas of a training stage."""
    module = ["-m", "launcher.stage", stage, str(run_dir)]
    if replicas == 1:
        return [sys.executable, *module]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={replicas}", *module]


def replicas_of(stage: str, config: Config) -> int:
    """Processes that a stage runs in: only training has replicas."""
    return config.parallelism.data_parallel if stage == "train" else 1


def available_cpus() -> int:
    """CPUs that this process may use: fewer than the machine has under Slurm or taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def child_environment(replicas: int) -> dict[str, str]:
    """The environment of a stage: our packages importable from any working directory, and its share of the CPUs."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(part for part in (str(ROOT), env.get("PYTHONPATH", "")) if part)
    env["PYTHONSAFEPATH"] = "1"  # a folder "trainer" in the user's directory is not ours (Python 3.11 on)
    env[LAUNCHER_PID] = str(os.getpid())
    # torchrun would set 1, and a single process would take every CPU of the machine, also those it may not use.
    env.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // replicas)))
    return env


class Interrupts:
    """Counts Ctrl-C and SIGTERM while stages run."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            # Not print: a signal may arrive inside one, and a buffered stream cannot be entered twice.
            os.write(2, b"\nstopping after this step; Ctrl-C again to stop at once\n")


@contextmanager
def counting_interrupts() -> Iterator[Interrupts]:
    """Count SIGINT and SIGTERM instead of dying of them, until the block ends."""
    interrupts = Interrupts()
    previous = {number: signal.signal(number, interrupts) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def workers(pid: int, replicas: int) -> list[int]:
    """Processes that train: the child itself, or torchrun's children once all of them run. Never torchrun, which
    would kill its workers in the middle of a step."""
    if replicas == 1:
        return [pid]
    import psutil

    found = []
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            with suppress(psutil.Error):
                if "launcher.stage" in child.cmdline():
                    found.append(child.pid)
    return found if len(found) >= replicas else []


def kill_session(pid: int) -> None:
    """SIGKILL to the child and everything below it; torchrun gives each worker a session of its own."""
    import psutil

    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def wait(child: subprocess.Popen[bytes], replicas: int, interrupts: Interrupts) -> int:
    """Wait for the child's end, handing interrupts on. Returns its exit code, negative for a signal."""
    forwarded = False
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=POLL_SECONDS)
        if interrupts.count > 1:
            kill_session(child.pid)
            return child.wait()
        if interrupts.count and not forwarded:
            for pid in workers(child.pid, replicas):
                forwarded = True
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)


def run_command(command: list[str], replicas: int, interrupts: Interrupts) -> int:
    """Run one stage's command in its own session. Returns its exit code, negative for a signal."""
    # preexec_fn as well as launcher/stage.py's own call: torchrun, too, must end with the launcher.
    with subprocess.Popen(
        command, env=child_environment(replicas), start_new_session=True, preexec_fn=die_with_parent
    ) as child:
        return wait(child, replicas, interrupts)


def exit_code(stage: str, code: int, interrupted: bool) -> int:
    """What the run exits with for a stage that failed; tells of a signal in one line."""
    if interrupted:
        return INTERRUPTED
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    reason = ": likely out of memory" if name == "SIGKILL" else ""
    print(f"error: stage {stage} was killed by {name}{reason}", file=sys.stderr)
    return 1


def was_interrupted(run_dir: RunDir, stage: str) -> bool:
    """True when the stage ended in order, but before its work was done."""
    return (run_dir.stage_result(stage) or {}).get("status") == "interrupted"


def run_stages(config: Config, run_dir: RunDir, command_of: CommandOf = stage_command) -> int:
    """Run the configured stages in order, and stop at the first that fails. Returns the run's exit code."""
    with counting_interrupts() as interrupts:
        for stage in config.stages:
            replicas = replicas_of(stage, config)
            code = run_command(command_of(stage, run_dir.path, replicas), replicas, interrupts)
            if code != 0:
                return exit_code(stage, code, interrupts.count > 0)
            more = stage != config.stages[-1]
            if (interrupts.count and more) or was_interrupted(run_dir, stage):
                return INTERRUPTED
    return 0
