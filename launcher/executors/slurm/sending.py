"""Handing jobs to Slurm, by submitit's own executor, and writing down which."""

from __future__ import annotations

import itertools
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.executors.slurm.asking import SUBMISSION_SECONDS, ask, words
from launcher.executors.slurm.environment import outside_of_jobs, submission_environment
from launcher.executors.slurm.graph import Key, PlannedJob
from launcher.executors.slurm.ledger import Job, Ledger
from launcher.executors.slurm.resources import batch_script, dependency, given, parameters
from launcher.executors.slurm.states import cancel
from launcher.executors.slurm.task import Frozen, ReportTask, StageTask, frozen_of
from launcher.jobs.job import REPORT
from launcher.jobs.variables import ON_ACCELERATOR
from launcher.paths import shown
from launcher.run_dir.layout import RunDir

if TYPE_CHECKING:
    from launcher.config.compose import Composition


@dataclass(frozen=True)
class Target:
    """Where everything of a submission goes."""

    base: Path
    """of the sweep or the single run"""
    code: Path
    sweep: bool

    def logs(self, run: str) -> Path:
        """Log directory of a run, or of the report."""
        return RunDir(self.base / run if self.sweep and run != REPORT else self.base).logs


def script(job: PlannedJob, composition: Composition, target: Target, ids: Mapping[Key, str]) -> str:
    """Its batch script, as sbatch would get it."""
    python = composition.runs[0].config.cluster.python or sys.executable
    return batch_script(python, target.logs(job.run), _options(job, composition, target, ids))


def _options(job: PlannedJob, composition: Composition, target: Target, ids: Mapping[Key, str]) -> dict[str, Any]:
    """submitit's parameters; of jobs that have no id yet, the one after ``ask_slurm``, none waits for another."""
    waits = dependency(
        [ids[key] for key in job.after_success if key in ids], [ids[key] for key in job.after_end if key in ids]
    )
    cluster = composition.runs[0].config.cluster
    return parameters(job.name, job.job, job.configured, cluster, target.code, depends_on=waits)


def submit_all(
    jobs: Sequence[PlannedJob],
    composition: Composition,
    target: Target,
    ledger: Ledger,
    queued: Mapping[Key, str] | None = None,
) -> None:
    """Submit in order; the ledger is written after every chain. ``queued``: ids of jobs that others wait for.

    Raises TrntuneError where Slurm refuses a job. Of a chain that breaks off nothing stays in the queue.
    """
    ids = dict(queued or {})
    environment = frozen_of(composition.runs[0].config.cluster.python)
    ledger.write()  # also when the first job is refused there is something to retry
    try:
        for run, chain in itertools.groupby(jobs, lambda job: job.run):
            with undisturbed():
                submitted = _submit_chain(list(chain), composition, target, ids, environment)
                _write_down(run, submitted, ledger)
    except (TrntuneError, KeyboardInterrupt) as error:
        place, count = shown(target.base), len(ids) - len(queued or {})
        rest = (
            f"{count} of {len(jobs)} jobs are in the queue: python -m launcher retry {place} submits the rest, "
            f"cancel {place} takes them back"
        )
        if isinstance(error, TrntuneError):
            raise TrntuneError(f"{error}; {rest}") from None
        print(rest, file=sys.stderr)
        raise


def _submit_chain(
    chain: list[PlannedJob], composition: Composition, target: Target, ids: dict[Key, str], environment: Frozen
) -> list[Job]:
    """Submit the jobs of one run and enter them into ``ids``; all of them, or none."""
    configs = {run.directory.name: run.config for run in composition.runs}
    python = composition.runs[0].config.cluster.python
    own: dict[Key, str] = {}
    try:
        for job in chain:
            task = _task(job, configs.get(job.run), target, environment)
            options = _options(job, composition, target, {**ids, **own})
            own[job.key] = _sbatch(task, target.logs(job.run), python, options)
    except TrntuneError as error:
        try:
            cancel(list(own.values()))
        except TrntuneError as refused:
            left = " ".join(own.values())
            raise TrntuneError(f"{error}; and its first jobs stay in the queue ({refused}): scancel {left}") from None
        raise
    ids.update(own)
    return [Job(stage, number, target.code.name) for (_, stage), number in own.items()]


def _write_down(run: str, submitted: list[Job], ledger: Ledger) -> None:
    if run == REPORT:
        ledger.report = submitted[0]
    else:
        ledger.of(run).jobs += submitted
        ledger.of(run).exit_code = None
    ledger.write()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and a lost connection wait until the block ends: a job that sbatch has handed over and nobody has written
    down could not be cancelled any more."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # sbatch inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _task(job: PlannedJob, config: Config | None, target: Target, environment: Frozen) -> StageTask | ReportTask:
    """What the job runs; ``config`` is its run's."""
    if config is None or job.stage == REPORT:
        return ReportTask(str(target.base), str(Path.cwd()), environment)
    return StageTask(
        job.stage,
        str(target.logs(job.run).parent),
        str(Path.cwd()),
        job.job.nodes,
        job.job.processes_per_node,
        environment,
        config.cluster.rendezvous_address if job.stage in ON_ACCELERATOR else None,
        config.cluster.rendezvous_port if job.stage in ON_ACCELERATOR else None,
        job.job.elastic,
    )


def _sbatch(task: StageTask | ReportTask, folder: Path, python: str | None, options: dict[str, Any]) -> str:
    """Submit one job by submitit. Returns its id."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from launcher.run_dir.create import make_private

    make_private(folder)
    executor = SlurmExecutor(folder=folder, python=shlex.quote(python or sys.executable))
    executor.update_parameters(**given(options))
    try:
        with outside_of_jobs():
            return str(executor.submit(task).job_id)
    except (FailedSubmissionError, FailedJobError, OSError) as error:
        raise TrntuneError(f"Slurm did not take the job {options['job_name']}: {_why(str(error))}") from None


def _why(text: str) -> str:
    """The end of what sbatch has said. An answer that came too late is none of a job that isn't there."""
    late = "; squeue --me shows whether the job is there: if so, scancel it first" if "timed out" in text else ""
    return words(text)[-400:] + late


def hand_in(file: Path) -> str:
    """Submit a batch file that isn't submitit's. Returns the job's id. Raises TrntuneError."""
    command = ["sbatch", "--parsable", str(file)]
    done = ask(command, SUBMISSION_SECONDS, submission_environment(), "squeue --me shows whether the job is there")
    if done.returncode:
        raise TrntuneError(f"Slurm did not take {shown(file)}: {_why(done.stderr)}")
    return done.stdout.strip().partition(";")[0]
