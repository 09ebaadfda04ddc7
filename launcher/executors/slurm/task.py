"""What a job runs: submitit loads one of these on every node of the step and calls it.

Requeueing is decided here and not by submitit, which would requeue before the processes that train have saved, and
takes every signal within ten minutes of the start for a timeout.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launcher.config.secrets import redact
from launcher.errors import FAILED, SUSPENDED, TrntuneError, disk_fault
from launcher.executors.slurm.asking import NoAnswer, ask, words
from launcher.executors.slurm.rendezvous import Step, agree, call_off, this_step
from launcher.io import write_json
from launcher.jobs.helper_process import python_module
from launcher.jobs.job import TRAIN
from launcher.jobs.run_stage import patience
from launcher.jobs.supervisor import Interrupts, counting_interrupts, run_command, run_stage
from launcher.jobs.torchrun import stage_command, torchrun
from launcher.jobs.variables import COMPILE, TORCHRUN_OPTIONS
from launcher.paths import ROOT
from launcher.run_dir.attempts import MAX_WITHOUT_PROGRESS, counted
from launcher.run_dir.layout import RunDir
from launcher.run_dir.lock import RunLock
from launcher.run_dir.provenance import installed_packages
from launcher.run_dir.resume import finished

# A controller that is restarted in the moment in which a job leaves is back some seconds later; Slurm's time limit ends
# the waiting.
_PAUSES = (5.0, 15.0, 30.0)
_REQUEUE_SECONDS = 60.0

# Starts the processes of a stage, which get these variables; returns what the run exits with.
Start = Callable[[Mapping[str, str]], int]


# Beside those that every run writes down: what starts jobs, cuts texts into tokens, and compiles for Neuron.
_MORE_PACKAGES = (
    "submitit", "tokenizers", "optimum-neuron", "neuronx-distributed", "torch-neuronx", "neuronx-cc", "libneuronxla",
    "nki",
)  # fmt: skip


@dataclass(frozen=True)
class Frozen:
    """The Python environment at submission: what runs must be what was submitted."""

    python: str | None
    """its version; None: it is not known, and not compared"""
    packages: tuple[tuple[str, str | None], ...]

    def check(self) -> None:
        """Raises TrntuneError when it is another one now."""
        if self.python is None:
            return
        now = frozen()
        before, after = {"Python": self.python, **dict(self.packages)}, {"Python": now.python, **dict(now.packages)}
        for name, version in before.items():
            if after.get(name) != version:
                raise TrntuneError(
                    f"the Python environment has changed since the job was submitted: {name} was {version}, is "
                    f"{after.get(name)}; install {version} again, or submit the run anew (python -m launcher retry)"
                )


def frozen() -> Frozen:
    """This process's environment."""
    packages = {**installed_packages(), **installed_packages(_MORE_PACKAGES)}
    return Frozen(sys.version.split()[0], tuple(packages.items()))


_ASK = (
    "import json; from launcher.executors.slurm.task import frozen; now = frozen(); "
    "print(json.dumps([now.python, now.packages]))"
)


def frozen_of(python: str | None) -> Frozen:
    """The environment of the Python that the jobs will run in; None: of this one. One that is on the nodes only can't
    be asked: that is said, and nothing is compared later."""
    if python is None or python == sys.executable:
        return frozen()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        command = [python, "-c", f"import sys; sys.path[0] = {str(ROOT)!r}; {_ASK}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
        version, packages = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        print(f"note: {python} does not run here: the jobs can't tell whether its packages change", file=sys.stderr)
        return Frozen(None, ())
    return Frozen(version, tuple((name, found) for name, found in packages))


@dataclass(frozen=True)
class StageTask:
    """One stage of a run, on one node of its job."""

    stage: str
    run_dir: str
    working_directory: str
    """of the submission: relative paths of the configuration are meant from there"""
    nodes: int
    processes_per_node: int
    frozen: Frozen
    rendezvous_address: str | None = None
    rendezvous_port: int | None = None
    elastic: bool = False
    """torchrun starts even a single process"""

    def __call__(self) -> None:
        """Run it. The process's exit code is the stage's: what fails is FAILED for Slurm, too."""
        step = this_step()
        _exit(self, step, lambda interrupts: self._run(step, interrupts))

    def _run(self, step: Step, interrupts: Interrupts) -> int:
        self.frozen.check()
        directory = RunDir(Path(self.run_dir))
        # The first node asks for the next start, and has written the checkpoint when its processes have left. The
        # others wait for it: their end with another code than 0 would be the end of it too.
        interrupts.hurried = self.nodes > 1 and step.node == 0
        start = partial(self._start, step, directory, interrupts)
        code = self._lead(step, directory, interrupts, start) if step.node == 0 else start({})
        if code != SUSPENDED or interrupts.first != signal.SIGUSR2:
            return code
        if self.stage == TRAIN:
            return leave(step)
        print(f"error: {out_of_time(self.stage)}", file=sys.stderr)
        return FAILED

    def _lead(self, step: Step, directory: RunDir, interrupts: Interrupts, start: Start) -> int:
        """The first node's part, which decides and counts for all: whoever may not work in the directory is no attempt,
        and what an earlier start of the job has finished is not done again."""
        told = partial(_is_told_to_leave, interrupts)
        with RunLock(directory.path, f"job of stage {self.stage}", patience=patience(), give_up=told):
            if has_finished(self.stage, directory):
                print(f"{directory.path}: stage {self.stage} has finished already", file=sys.stderr)
                if self.nodes > 1:
                    call_off(step, directory.logs)
                return 0
            self._check_endless(step)
            return counted(directory, start) if self.stage == TRAIN else start({})

    def _start(self, step: Step, directory: RunDir, interrupts: Interrupts, more: Mapping[str, str]) -> int:
        """Run the stage's processes of this node; ``more`` are variables for them."""
        meeting = self._torchrun_options(step)
        if meeting is None:
            return 0
        if self.stage == COMPILE:
            # One process on each node, which starts the others itself.
            command = python_module("launcher.jobs.run_stage", COMPILE, self.run_dir)
            options = {TORCHRUN_OPTIONS: shlex.join(meeting), "RANK": str(step.node)}
            return run_stage(COMPILE, directory, command, 1, interrupts, {**options, **more})
        return run_stage(self.stage, directory, self._command(meeting), self.processes_per_node, interrupts, more)

    def _check_endless(self, step: Step) -> None:
        """Training's starts without progress are counted, whichever job they belong to; every other stage begins anew
        at each start, so that none of them is progress."""
        if self.stage != TRAIN and step.restarts >= MAX_WITHOUT_PROGRESS:
            raise TrntuneError(
                f"stage {self.stage} was started {step.restarts} times without an end (its nodes were lost, or wanted "
                "by others). It is not tried again: find the cause, then python -m launcher retry"
            )

    def _command(self, meeting: list[str]) -> list[str]:
        path = Path(self.run_dir)
        if self.nodes == 1:
            return stage_command(self.stage, path, self.processes_per_node, self.elastic)
        return torchrun(
            python_module("launcher.jobs.run_stage", self.stage, str(path)), self.processes_per_node, meeting
        )

    def _torchrun_options(self, step: Step) -> list[str] | None:
        """How the processes of all nodes meet; None where there is nothing to do."""
        if self.nodes == 1:
            return ["--standalone"]
        meeting = agree(step, RunDir(Path(self.run_dir)).logs, self.rendezvous_address, self.rendezvous_port)
        return None if meeting is None else [f"--nnodes={self.nodes}", *meeting]


@dataclass(frozen=True)
class ReportTask:
    """The comparison of a sweep, when all of its runs have ended."""

    sweep_dir: str
    working_directory: str
    frozen: Frozen

    @property
    def run_dir(self) -> str:
        """Where its logs are."""
        return self.sweep_dir

    def __call__(self) -> None:
        """Make it."""
        command = python_module("launcher", "report", self.sweep_dir)
        _exit(self, this_step(), lambda interrupts: run_command(command, 1, interrupts))


def has_finished(stage: str, directory: RunDir) -> bool:
    """True when the stage has left its result: before its job was requeued, by another job, or on another machine."""
    return directory.stage_file(stage).exists() and finished(stage, directory.load_config(), directory)


def _is_told_to_leave(interrupts: Interrupts) -> bool:
    return interrupts.first == signal.SIGTERM


def out_of_time(stage: str) -> str:
    """What to say of a stage that can't be taken up again and was told that its time limit is near."""
    key, kept = "cluster.small.time_limit_min", "nothing of it"
    if stage == COMPILE:
        key, kept = "cluster.compile_time_limit_min", "the graphs that are compiled"
    return (
        f"stage {stage} was still at work when its time limit was near, and keeps {kept}: "
        f"python -m launcher retry SWEEP {key}=MINUTES gives it more"
    )


def leave(step: Step) -> int:
    """The time limit is near and a checkpoint is there: the first node has the job started again. Returns the exit
    code of this node's task.

    The others end as if all were well: with another code they would end the step before the first has asked.
    """
    if step.node != 0:
        return 0
    why = ""
    for pause in (*_PAUSES, None):
        try:
            done = ask(["scontrol", "requeue", step.job_id], _REQUEUE_SECONDS)
            why = words(done.stderr) if done.returncode else ""
        except NoAnswer as error:
            why = str(error)
        if not why:
            print(f"requeued job {step.job_id}: it goes on from the checkpoint", file=sys.stderr)
            return SUSPENDED
        if pause is not None:
            time.sleep(pause)
    print(f"error: job {step.job_id} is not requeued ({why}): python -m launcher retry goes on", file=sys.stderr)
    return SUSPENDED


def end_file(folder: Path, job_id: str) -> Path:
    """Where a job leaves its exit code, for the day when Slurm has forgotten it."""
    return folder / f"{job_id}.end.json"


def _exit(task: StageTask | ReportTask, step: Step, work: Callable[[Interrupts], int]) -> None:
    """Do ``work`` and end the process with its code."""
    os.chdir(_existing(task.working_directory))
    ending = end_file(RunDir(Path(task.run_dir)).logs, step.job_id)
    if step.node == 0:
        with suppress(OSError):
            ending.unlink()  # of an earlier start of this job
    # The step's own directory is the snapshot, in which nothing is to be written; Python's path stays there.
    sys.path[0] = str(ROOT)
    with counting_interrupts(patient=True) as interrupts:
        try:
            code = work(interrupts)
        except TrntuneError as error:
            print(f"error: {redact(str(error))}", file=sys.stderr)
            code = error.exit_code
        except OSError as error:
            if (fault := disk_fault(error)) is None:
                raise
            print(f"error: {fault}", file=sys.stderr)
            code = FAILED
    code = FAILED if code < 0 else code
    if step.node == 0:
        with suppress(OSError):  # Slurm knows, too: no reason to fail
            write_json(ending, {"exit_code": code})
    if code != 0:
        sys.exit(code)


def _existing(directory: str) -> str:
    if not Path(directory).is_dir():
        print(f"error: {directory}: not there on this node; submit from a directory that all share", file=sys.stderr)
        sys.exit(FAILED)
    return directory
