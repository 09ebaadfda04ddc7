"""One stage as a process of this machine, in its own session; signals go to whoever trains.

Signals are the launcher's to handle: the stages do not share its terminal's process group. The first one goes once to
the processes that train, which end after their step; a second one kills them. Ctrl-C asks for an end with what was
reached; SIGTERM and SIGUSR2, which Slurm sends before it takes a machine away, ask for a checkpoint and nothing more.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType, MappingProxyType

from launcher.errors import INTERRUPTED, SUSPENDED
from launcher.jobs.chain import death, exit_code, outcome_of
from launcher.jobs.helper_process import outside_of_torchrun
from launcher.jobs.parent_death import LAUNCHER_PID, die_with_parent
from launcher.jobs.torchrun import workers
from launcher.paths import ROOT
from launcher.run_dir.layout import RunDir
from launcher.run_dir.lock import runs

POLL_SECONDS = 0.1
# torchrun waits up to five minutes for the end of the other nodes' (exit_barrier_timeout of
# torch/distributed/elastic/agent/server/api.py), which may be gone: longer than is left before a time limit.
LINGER_SECONDS = 10.0


def available_cpus() -> int:
    """CPUs that this process may use: fewer than the machine has under Slurm or taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def child_environment(replicas: int, configured: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The environment of a stage: what the configuration sets, our packages importable from any working directory, and
    its share of the CPUs. Numbers of another launcher's processes are not for it."""
    # accelerate would take its settings from there: bf16 for a run that says fp32, and no word about it.
    env = {name: value for name, value in outside_of_torchrun().items() if not name.startswith("ACCELERATE_")}
    env.update(configured)
    env["PYTHONPATH"] = os.pathsep.join(part for part in (str(ROOT), env.get("PYTHONPATH", "")) if part)
    env["PYTHONSAFEPATH"] = "1"  # a folder "trainer" in the user's directory is not ours (Python 3.11 on)
    env[LAUNCHER_PID] = str(os.getpid())
    # torchrun would set 1, and a single process would take every CPU of the machine, also those it may not use.
    env.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // replicas)))
    return env


class Interrupts:
    """Counts signals that ask to stop while stages run; ``patient``: no number of them kills a stage."""

    def __init__(self, patient: bool = False) -> None:
        self.count = 0
        self.first: int | None = None
        self.patient = patient
        self.hurried = False
        """do not wait for torchrun once its workers have left"""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self.first = number
            # Not print: a signal may arrive inside one, and a buffered stream cannot be entered twice.
            more = b"" if self.patient else b"; Ctrl-C again to stop at once"
            os.write(2, b"\nstopping after this step" + more + b"\n")

    @property
    def at_once(self) -> bool:
        """True when whoever asks has asked again."""
        return self.count > 1 and not self.patient

    @property
    def forwarded(self) -> signal.Signals:
        """What the stage gets: a SIGUSR2 before its handler is there would be lost, a SIGTERM is not."""
        return signal.SIGINT if self.first == signal.SIGINT else signal.SIGTERM

    @property
    def exit_code(self) -> int:
        """Of a run that ended because of the first signal."""
        return INTERRUPTED if self.first == signal.SIGINT else SUSPENDED


@contextmanager
def counting_interrupts(patient: bool = False) -> Iterator[Interrupts]:
    """Count SIGINT, SIGTERM and SIGUSR2 instead of dying of them, until the block ends."""
    interrupts = Interrupts(patient)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    previous = {number: signal.signal(number, interrupts) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
    import psutil

    told: dict[int, float] = {}
    left: float | None = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=POLL_SECONDS)
        if interrupts.at_once:
            kill_session(child.pid)
            return child.wait()
        if interrupts.count and not told:
            for pid in workers(child.pid, replicas):
                with suppress(ProcessLookupError, psutil.Error):
                    told[pid] = psutil.Process(pid).create_time()
                    os.kill(pid, interrupts.forwarded)
        if interrupts.hurried and told and not any(runs(pid, started) for pid, started in told.items()):
            left = time.monotonic() if left is None else left
            if time.monotonic() - left > LINGER_SECONDS:
                kill_session(child.pid)
                return child.wait()


def prepare_child() -> None:
    """In the child, before its program: torchrun, too, must end with the launcher, and must outlive a SIGUSR2 that
    Slurm sends to every process of a step, since its workers end with it."""
    die_with_parent()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def run_command(
    command: list[str],
    replicas: int,
    interrupts: Interrupts,
    configured: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Run one stage's command in its own session. Returns its exit code, negative for a signal."""
    with subprocess.Popen(
        command, env=child_environment(replicas, configured), start_new_session=True, preexec_fn=prepare_child
    ) as child:
        return wait(child, replicas, interrupts)


def run_stage(
    stage: str,
    run_dir: RunDir,
    command: list[str],
    replicas: int,
    interrupts: Interrupts,
    configured: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Run one stage by ``command``, in ``replicas`` processes of this machine. Returns what the run exits with; tells
    of a signal that killed it in one line."""
    code = run_command(command, replicas, interrupts, configured)
    asked = interrupts.exit_code if interrupts.count else None
    if (how := death(code, asked, outcome_of(run_dir, stage))) is not None:
        print(f"error: stage {stage} was {how}", file=sys.stderr)
    return exit_code(code, asked, run_dir, stage)
