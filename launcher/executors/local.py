"""Runs the stages of one run on this machine, in order, each as its own process in its own session.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType, MappingProxyType

from launcher.config.schema import Config, world_size
from launcher.config.secrets import redact
from launcher.errors import FAILED, INTERRUPTED, SUSPENDED, TrntuneError
from launcher.jobs.helper_process import outside_of_torchrun, python_module
from launcher.jobs.parent_death import LAUNCHER_PID, die_with_parent
from launcher.jobs.variables import variables
from launcher.paths import ROOT, shown
from launcher.run_dir.attempts import Attempts, counted
from launcher.run_dir.layout import RunDir
from launcher.run_dir.lock import runs
from launcher.run_dir.result import RunStatus
from launcher.run_dir.resume import finished

POLL_SECONDS = 0.1
# torchrun waits up to five minutes for the end of the other nodes' (exit_barrier_timeout of
# torch/distributed/elastic/agent/server/api.py), which may be gone: longer than is left before a time limit.
LINGER_SECONDS = 10.0

TORCHRUN = "torch.distributed.run"

CommandOf = Callable[[str, Path, int, bool], list[str]]


def stage_command(stage: str, run_dir: Path, processes: int, elastic: bool = False) -> list[str]:
    """The command line of one stage. torchrun starts the processes of a training stage, a single one if ``elastic``."""
    module = python_module("launcher.jobs.run_stage", stage, str(run_dir))
    return torchrun(module, processes, ["--standalone"]) if processes > 1 or elastic else module


def torchrun(command: list[str], processes: int, meeting: list[str]) -> list[str]:
    """``command`` in that many processes of this machine; ``meeting`` says where they find those of others."""
    options = ["--no-python", f"--nproc-per-node={processes}", *meeting]
    return [sys.executable, "-m", TORCHRUN, *options, *command]


def processes_of(stage: str, config: Config) -> int:
    """Processes that a stage runs in: only training has several."""
    return world_size(config) if stage == "train" else 1


def is_elastic(stage: str, config: Config) -> bool:
    """True where even a single process must be torchrun's: optimum-neuron asks it for the process group
    (optimum/neuron/utils/torch_xla_and_neuronx_initialization.py: TORCHELASTIC_RUN_ID)."""
    return stage == "train" and config.accelerator.engine == "neuron"


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


def workers(pid: int, replicas: int) -> list[int]:
    """Processes that train: the child itself, or torchrun's children once all of them run. Never torchrun, which
    would kill its workers in the middle of a step."""
    import psutil

    found = []
    with suppress(psutil.Error):
        if replicas == 1 and TORCHRUN not in psutil.Process(pid).cmdline():
            return [pid]
        for child in psutil.Process(pid).children():
            with suppress(psutil.Error):
                if "launcher.jobs.run_stage" in child.cmdline():
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


def exit_code(stage: str, code: int, interrupts: Interrupts, outcome: str | None) -> int:
    """What the run exits with for a stage that failed; tells of a signal in one line."""
    if code in (INTERRUPTED, SUSPENDED):
        return code
    if outcome == RunStatus.FAILED:
        # On the way out it is one all the same: the checkpoint may not be there.
        return max(code, FAILED)
    if interrupts.count:
        return interrupts.exit_code
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    reason = ": likely out of memory" if name == "SIGKILL" else ""
    print(f"error: stage {stage} was killed by {name}{reason}", file=sys.stderr)
    return 1


def was_interrupted(run_dir: RunDir, stage: str) -> bool:
    """True when the stage ended in order, but before its work was done."""
    return (run_dir.stage_result(stage) or {}).get("status") == RunStatus.INTERRUPTED


def outcome_of(run_dir: RunDir, stage: str) -> str | None:
    """How training says that it ended: under torchrun its exit code can't."""
    attempts = Attempts(run_dir.attempts).read() if stage == "train" else []
    return attempts[-1].outcome if attempts else None


def run_stage(
    stage: str,
    run_dir: RunDir,
    command: list[str],
    replicas: int,
    interrupts: Interrupts,
    configured: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Run one stage by ``command``, in ``replicas`` processes of this machine. Returns what the run exits with."""
    code = run_command(command, replicas, interrupts, configured)
    if code != 0:
        return exit_code(stage, code, interrupts, outcome_of(run_dir, stage))
    if outcome_of(run_dir, stage) == RunStatus.SUSPENDED:
        return SUSPENDED
    return INTERRUPTED if was_interrupted(run_dir, stage) else 0


def _start(
    stage: str,
    run_dir: RunDir,
    command: list[str],
    replicas: int,
    interrupts: Interrupts,
    configured: Mapping[str, str],
    more: Mapping[str, str],
) -> int:
    return run_stage(stage, run_dir, command, replicas, interrupts, {**configured, **more})


def run_stages(config: Config, run_dir: RunDir, command_of: CommandOf = stage_command) -> int:
    """Run the configured stages that have not finished, in order, and stop at the first that fails. Returns the run's
    exit code."""
    with counting_interrupts() as interrupts:
        for stage in config.stages:
            # One that ran has removed the results of those after it, which are made from its own.
            if finished(stage, config, run_dir):
                print(f"{shown(run_dir.path)}: stage {stage} has finished already", file=sys.stderr)
                continue
            processes = processes_of(stage, config)
            command = command_of(stage, run_dir.path, processes, is_elastic(stage, config))
            started = partial(_start, stage, run_dir, command, processes, interrupts, variables(stage, config))
            try:
                code = counted(run_dir, started) if stage == "train" else started({})
            except TrntuneError as error:  # of this run: a sweep goes on with the next one
                print(f"error: {redact(str(error))}", file=sys.stderr)
                return error.exit_code
            if code != 0:
                return code
            if interrupts.count and stage != config.stages[-1]:
                return interrupts.exit_code
    return 0
