"""The launcher: compose and check everything, then run each configuration, then report."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli import parse, process_entry
from launcher.config.overrides import expand, refuse_tokens
from launcher.errors import INTERRUPTED, SUSPENDED, UsageError

if TYPE_CHECKING:
    from launcher.config.compose import Composed, Composition
    from launcher.config.schema import Config
    from launcher.run_dir.layout import RunDir
    from launcher.sweep.parent_run import ParentRun

# Runs the stages of one run and returns its exit code: launcher.executors.local.run_stages, or a test's own.
RunStages = Callable[["Config", "RunDir"], int]


@dataclass(frozen=True)
class Finished:
    """One run of a sweep that has ended."""

    directory: Path
    overrides: tuple[str, ...]
    exit_code: int

    @property
    def stopped(self) -> bool:
        """True when it was told to stop: no other run is started after it."""
        return self.exit_code in (INTERRUPTED, SUSPENDED)


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code: 0, 1 a run failed, 2 nothing was started, 75 told to leave, 130 Ctrl-C."""
    return process_entry(dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Do what the flags ask for. The help is printed without composing, and without importing Hydra."""
    refuse_tokens(argv)
    arguments = parse(argv)
    arguments.overrides = expand(arguments.overrides)
    if arguments.help:
        from launcher.config.help import help_text

        print(help_text(arguments.config_dir), end="")
        return 0
    if arguments.version:
        from launcher.run_dir.provenance import installed

        print(f"trntune {installed('trntune')}")
        return 0
    if arguments.cfg or arguments.info or arguments.hydra_help or arguments.shell_completion:
        from launcher.config.compose import show

        return show(arguments)
    return launch(arguments)


def launch(arguments: argparse.Namespace) -> int:
    """Compose, check, run and report."""
    from launcher.config.compose import compose
    from launcher.executors.local import run_stages
    from launcher.run_dir.resume import stored_command

    stored = stored_command(arguments.overrides)
    if stored is not None:
        arguments.overrides, multirun = stored
        arguments.multirun = arguments.multirun or multirun
    composition = compose(arguments)
    if composition.runs[0].config.plan.show:
        return show_plans(composition)
    check(composition)
    if composition.runs[0].config.cluster.name != "local":
        from launcher.executors.slurm.submit import submit

        return submit(composition, arguments.overrides)
    if composition.sweep_dir is None:
        return run_single(composition.runs[0], run_stages)
    return run_sweep(composition, arguments.overrides, run_stages)


def show_plans(composition: Composition) -> int:
    """Print what the runs will need and take. Nothing is created. Returns 1 when one of them can't fit."""
    from launcher.checks.validate import refuse_problems
    from launcher.plan import build, show

    plans, labels = [], []
    for run in composition.runs:
        refuse_problems(run.config, run.overrides, run.swept)
        plans.append(build.make(run.config))
        labels.append(" ".join(run.swept) or run.config.method.name)
    show.print_plans(plans, labels)
    return 0 if all(plan.fits or plan.config.plan.force for plan in plans) else 1


def check(composition: Composition) -> None:
    """Raise UsageError for the first configuration that cannot be run; the line names it in a sweep."""
    from launcher.architecture.families import refuse_family
    from launcher.checks.validate import check_directory, refuse_absent, refuse_problems
    from launcher.config.compose import label
    from launcher.neuron.checks import refuse_untrainable
    from launcher.plan.build import refuse_what_cannot_run, room
    from launcher.plan.disk import refuse_little_room
    from launcher.run_dir.create import occupied
    from launcher.run_dir.resume import find_changes, holds_run

    total, rooms = len(composition.runs), []
    for number, run in enumerate(composition.runs):
        try:
            refuse_problems(run.config, run.overrides, run.swept)
            refuse_untrainable(run.config)
            if not run.config.dry_run:
                refuse_what_cannot_run(run.config)
                refuse_family(run.config)
                refuse_absent(run.config)
            if run.fixed_name and holds_run(run.directory):
                find_changes(run.config, run.directory)  # the room that it takes already is counted as it trains
            else:
                check_directory(run.directory, occupied(run.directory) if run.fixed_name else None)
                rooms += [] if run.config.dry_run or (needed := room(run.config)) is None else [needed]
        except UsageError as error:
            if composition.sweep_dir is None:
                raise
            raise UsageError(f"{label(number, total, run.swept)}: {error}") from error
    refuse_little_room(composition.runs[0].directory.parent, rooms)
    directories = [run.directory for run in composition.runs]
    if len(set(directories)) < total:
        raise UsageError("hydra.sweep.subdir gives several runs the same directory; put ${hydra.job.num} into it")


def run_single(run: Composed, run_stages: RunStages) -> int:
    """Run one configuration, and print its summary when it has trained."""
    directory, code = start(run, run.directory, run.fixed_name, run_stages)
    if code in (0, INTERRUPTED) and has_trained(directory):
        importlib.import_module("postprocess.summary").print_run(directory)
    return code


def start(
    run: Composed, directory: Path, fixed_name: bool, run_stages: RunStages, sweep: dict[str, str | None] | None = None
) -> tuple[Path, int]:
    """Make the run directory, or take up the run that it holds, and run the stages. Returns it and the exit code."""
    from launcher.run_dir.prepare import prepared

    with prepared(run, directory, fixed_name, sweep) as run_dir:
        return run_dir.path, run_stages(run.config, run_dir)


def run_sweep(composition: Composition, overrides: list[str], run_stages: RunStages) -> int:
    """Run the configurations one after another; a failed one stops none of the others, an interrupted one all."""
    from launcher.run_dir.create import create
    from launcher.run_dir.lock import RunLock
    from launcher.sweep import parent_run as parents

    assert composition.sweep_dir is not None
    base = create(composition.sweep_dir, composition.fixed_name)
    with RunLock(base, "launch.py -m"):
        configs, swept = [run.config for run in composition.runs], [run.swept for run in composition.runs]
        parent = parents.stored(base) or parents.start(configs, swept, base)
        code = 1
        try:
            finished = run_all(composition, overrides, base, parent, run_stages)
            code = report_sweep(finished, len(composition.runs))
        except KeyboardInterrupt:
            code = INTERRUPTED
            raise
        finally:
            if parent:
                status = {0: "FINISHED", INTERRUPTED: "KILLED", SUSPENDED: "KILLED"}.get(code, "FAILED")
                parents.finish(parent, status, base)
    return code


def run_all(
    composition: Composition, overrides: list[str], base: Path, parent: ParentRun | None, run_stages: RunStages
) -> list[Finished]:
    """The runs that were started: all of them, unless one was stopped."""
    from launcher.config.compose import label
    from launcher.paths import shown

    finished: list[Finished] = []
    write_sweep(base, overrides, finished, parent)
    for number, run in enumerate(composition.runs):
        directory = base / run.directory.name
        print(f"{label(number, len(composition.runs), run.swept)} -> {shown(directory)}", flush=True)
        nested = parent.run_id if parent and parent.holds(run.config.tracking) else None
        sweep = {"directory": str(base), "mlflow_parent_run_id": nested}
        code = start(run, directory, True, run_stages, sweep)[1]
        finished.append(Finished(directory, run.overrides, code))
        write_sweep(base, overrides, finished, parent)
        if finished[-1].stopped:
            break
    return finished


def write_sweep(base: Path, overrides: list[str], finished: list[Finished], parent: ParentRun | None) -> None:
    """Write sweep.json after every run, so that a sweep that was killed is readable and can be started again."""
    from launcher.io import write_json

    runs = [
        {"directory": run.directory.name, "overrides": list(run.overrides), "exit_code": run.exit_code}
        for run in finished
    ]
    mlflow = parent.to_json() if parent else None
    write_json(base / "sweep.json", {"overrides": overrides, "runs": runs, "mlflow": mlflow})


def report_sweep(finished: list[Finished], total: int) -> int:
    """Print the comparison and the failed runs. Returns the sweep's exit code."""
    if any(has_trained(run.directory) for run in finished):
        importlib.import_module("postprocess.compare").report_sweep_directory(finished[0].directory.parent)
    failed = [run for run in finished if run.exit_code != 0 and not run.stopped]
    if failed:
        names = ", ".join(f"{run.directory.name} (exit code {run.exit_code})" for run in failed)
        print(f"error: {len(failed)} of {total} runs failed: {names}", file=sys.stderr)
    if finished[-1].stopped:
        print(f"interrupted: {len(finished)} of {total} runs were started", file=sys.stderr)
        return finished[-1].exit_code
    return 1 if failed else 0


def has_trained(directory: Path) -> bool:
    """True when the run's training stage has left a result."""
    from launcher.run_dir.layout import RunDir

    return RunDir(directory).stage_result("train") is not None
