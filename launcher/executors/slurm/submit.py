"""Submitting what was composed: everything is checked first, then one run after another goes to Slurm.

Returns as soon as all is submitted. The record of what was submitted is written after every run, so that a submission
that breaks off can be seen, cancelled and completed by `python -m launcher`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.executors.slurm import ledger as ledgers
from launcher.executors.slurm.checks import (
    ask_slurm,
    ask_srun,
    check_composition,
    check_this_machine,
    inputs,
    not_shared,
)
from launcher.executors.slurm.graph import Key, PlannedJob, describe, plan_jobs, report_job
from launcher.executors.slurm.ledger import Job, Ledger, RunJobs
from launcher.executors.slurm.progress import with_end
from launcher.executors.slurm.sending import Target, script, submit_all
from launcher.executors.slurm.states import State, cancel, states
from launcher.paths import shown
from launcher.run_dir.config_diff import FREE, under
from launcher.run_dir.layout import RunDir
from launcher.run_dir.resume import holds_run, remaining

if TYPE_CHECKING:
    from launcher.config.compose import Composed, Composition

CODE = "code"


def execute(composition: Composition, overrides: list[str]) -> int:
    """Submit all runs, or print what would be submitted. Returns the exit code."""
    check_composition(composition)
    config = composition.runs[0].config
    base = composition.sweep_dir or composition.runs[0].directory
    if config.dry_run:
        return _dry_run(composition, base)
    check_this_machine([run.config for run in composition.runs], base)
    ask_srun(config.cluster.srun_args)
    jobs = _plan(composition, _work(composition, base))
    preview = Target(base, base / CODE / "CODE", composition.sweep_dir is not None)
    ask_slurm([script(job, composition, preview, {}) for job in jobs])
    return _submit_sweep(composition, overrides) if composition.sweep_dir else _submit_single(composition.runs[0])


def _work(composition: Composition, base: Path) -> list[tuple[str, Config, list[str]]]:
    """Name, configuration and stages to run, of every run that has any."""
    found = []
    for run in composition.runs:
        directory = base / run.directory.name if composition.sweep_dir else run.directory
        stages = remaining(run.config, RunDir(directory)) if holds_run(directory) else list(run.config.stages)
        found.append((run.directory.name, run.config, stages))
    return found


def _plan(
    composition: Composition, work: Sequence[tuple[str, Config, list[str]]], queued: Sequence[Key] = ()
) -> list[PlannedJob]:
    config = composition.runs[0].config
    sweep = composition.sweep_dir is not None
    return plan_jobs(work, config.cluster.max_parallel if sweep else None, config if sweep else None, queued)


# --- printing --------------------------------------------------------------------------------------------------------


def _dry_run(composition: Composition, base: Path) -> int:
    """Print every batch script and the order of the jobs. Nothing is created."""
    config = composition.runs[0].config
    jobs = _plan(composition, _work(composition, base))
    target = Target(base, base / CODE / "CODE", composition.sweep_dir is not None)
    ids = {job.key: f"JOBID_{job.name}" for job in jobs}
    for job in jobs:
        print(f"# {job.name}\n{script(job, composition, target, ids)}")
    print("# Order")
    for line in describe(jobs):
        print(f"# {line}")
    needed = [place for run in composition.runs for place in inputs(run.config)]
    for line in not_shared(config.cluster, base, needed):
        print(f"note: refused when it is submitted: {line}", file=sys.stderr)
    print("note: nothing was submitted (dry_run=true)", file=sys.stderr)
    return 0


# --- submitting ------------------------------------------------------------------------------------------------------


def _submit_single(run: Composed) -> int:
    from launcher.config.compose import Composition
    from launcher.run import start

    if run.fixed_name:  # before anything is written there: a queued job runs the configuration of its submission
        _check_active(_ledger_of(run.directory, run))

    def stages(config: Config, run_dir: RunDir) -> int:
        left = remaining(config, run_dir)
        ledger = _ledger_of(run_dir.path, run)
        _check_active(ledger)
        ledger.runs[0].plan(config.stages, left)
        if not left:
            ledger.write()  # from now on status and wait say so too, also of a stage whose job failed after its result
            print(f"{shown(run_dir.path)}: all stages have finished already", file=sys.stderr)
            return 0
        target = Target(run_dir.path, _take_code(run_dir.path), sweep=False)
        composition = Composition((run,), None, True)
        submit_all(plan_jobs([(run.directory.name, config, left)], None, None), composition, target, ledger)
        chain = " -> ".join(f"{job.stage} {job.id}" for job in ledger.runs[0].decisive())
        say_submitted(run_dir.path, chain)
        return 0

    return start(run, run.directory, run.fixed_name, stages)[1]


def _submit_sweep(composition: Composition, overrides: list[str]) -> int:
    from launcher.run_dir.create import create
    from launcher.run_dir.lock import RunLock
    from launcher.run_dir.prepare import prepared
    from launcher.sweep import parent_run as parents

    assert composition.sweep_dir is not None
    base = create(composition.sweep_dir, composition.fixed_name)
    with RunLock(base, "launch.py -m"):
        ledger = _ledger_of_sweep(base, composition, overrides)
        known = states(ledger.ids())
        active = _active_runs(ledger, known)
        parent = parents.stored(base) or parents.start(
            [run.config for run in composition.runs], [run.swept for run in composition.runs], base
        )
        ledger.mlflow = parent.to_json() if parent else None
        target = Target(base, _take_code(base), sweep=True)
        work, settled = [], False
        for run in composition.runs:
            directory = base / run.directory.name
            if directory in active:
                print(f"{shown(directory)}: its jobs are still in the queue", file=sys.stderr)
                continue
            nested = parent.run_id if parent and parent.holds(run.config.tracking) else None
            with prepared(run, directory, True, {"directory": str(base), "mlflow_parent_run_id": nested}) as run_dir:
                work.append((directory.name, run.config, remaining(run.config, run_dir)))
        for name, config, left in work:
            settled |= _settle(ledger.of(name), config.stages, left)
        if not any(left for *_, left in work) and not settled and _is_reported(ledger, known):
            ledger.write()
            print(f"{shown(base)}: nothing is left to submit", file=sys.stderr)
            return 0
        _take_back([ledger.report] if ledger.report else [], known)
        queued = {(directory.name, job.stage): job.id for directory, job in active.items()}
        jobs = _plan(composition, work, list(queued)) or [report_job(composition.runs[0].config, [])]
        submit_all(jobs, composition, target, ledger, queued)
        assert ledger.report is not None
        say_submitted(base, f"{sum(bool(stages) for *_, stages in work)} runs, report {ledger.report.id}")
    return 0


def _take_code(base: Path) -> Path:
    from launcher.executors.slurm.snapshot import take

    return take(base / CODE)


def _ledger_of(directory: Path, run: Composed) -> Ledger:
    """Of a single run: the one that is there, or a new one."""
    if (directory / ledgers.JOBS).is_file():
        return ledgers.read(directory)
    return Ledger(directory, list(run.overrides), [RunJobs(directory, list(run.overrides))], single=True)


def _ledger_of_sweep(base: Path, composition: Composition, overrides: list[str]) -> Ledger:
    if (base / ledgers.SWEEP).is_file():
        found = ledgers.read(base)
        known = {run.directory for run in found.runs}
        missing = [run for run in composition.runs if base / run.directory.name not in known]
        found.runs += [RunJobs(base / run.directory.name, list(run.overrides)) for run in missing]
        if known <= {base / run.directory.name for run in composition.runs}:
            found.overrides = _lasting(found.overrides, overrides)
        return found
    runs = [RunJobs(base / run.directory.name, list(run.overrides)) for run in composition.runs]
    return Ledger(base, overrides, runs, single=False)


def _lasting(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """What the next retry composes the sweep of: what is trained as it was said last, the rest as it was said first."""
    free = [line for line in before if under(line.partition("=")[0], FREE)]
    return [*free, *(line for line in now if not under(line.partition("=")[0], FREE))]


def _active_runs(ledger: Ledger, known: Mapping[str, State]) -> dict[Path, Job]:
    """Directories of runs that have jobs in the queue, and the last of these."""
    waiting = {run.directory: [job for job in run.current().values() if not known[job.id].ended] for run in ledger.runs}
    return {directory: jobs[-1] for directory, jobs in waiting.items() if jobs}


def _settle(run: RunJobs, wanted: Sequence[str], left: Sequence[str]) -> bool:
    """Write down what is to be submitted of a run. True where that is nothing, although the last report counts it as
    failed: its job did, but after the result was there."""
    run.plan(wanted, left)
    counted_as_failed = not left and run.exit_code not in (None, 0)
    if counted_as_failed:
        run.exit_code = None
    return counted_as_failed


def _is_reported(ledger: Ledger, known: Mapping[str, State]) -> bool:
    """True when the comparison is made, or will be."""
    if ledger.report is None:
        return False
    state = with_end(known[ledger.report.id], RunDir(ledger.directory), ledger.report)
    return state.succeeded or not state.ended


def _take_back(jobs: Sequence[Job], known: Mapping[str, State]) -> None:
    """Cancel those of the jobs that haven't ended."""
    if still := [job.id for job in jobs if not known[job.id].ended]:
        cancel(still)


def _check_active(ledger: Ledger) -> None:
    if _active_runs(ledger, states(ledger.ids())):
        place = shown(ledger.directory)
        raise TrntuneError(
            f"{place}: its jobs are still in the queue: wait for them, or python -m launcher cancel {place}"
        )


def say_submitted(directory: Path, what: str, others: str = "wait, cancel, retry") -> None:
    """What was submitted, and how to follow it; ``others`` are the commands beside status."""
    print(f"submitted {shown(directory)}: {what}")
    print(f"follow it: python -m launcher status {shlex.quote(shown(directory))}    (or {others})")
