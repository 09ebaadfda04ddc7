"""The launcher: compose and check everything, then have the executor of the cluster run or submit it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from launcher.cli import parse, process_entry
from launcher.config.overrides import check_arguments, expand
from launcher.errors import UsageError

if TYPE_CHECKING:
    from launcher.config.compose import Composition


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code: 0, 1 a run failed, 2 nothing was started, 75 told to leave, 130 Ctrl-C."""
    return process_entry(dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Do what the flags ask for. The help is printed without composing, and without importing Hydra."""
    check_arguments(argv)
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
        from launcher.config.show import show

        return show(arguments)
    return launch(arguments)


def launch(arguments: argparse.Namespace) -> int:
    """Compose and check, and hand it to the executor of its cluster, which reports."""
    from launcher.config.compose import compose
    from launcher.jobs.executor import executor_of
    from launcher.run_dir.resume import stored_command

    stored = stored_command(arguments.overrides)
    if stored is not None:
        arguments.overrides, multirun = stored
        arguments.multirun = arguments.multirun or multirun
    composition = compose(arguments)
    if composition.runs[0].config.plan.show:
        return show_plans(composition)
    check(composition)
    return executor_of(composition.runs[0].config.cluster).execute(composition, arguments.overrides)


def show_plans(composition: Composition) -> int:
    """Print what the runs will need and take. Nothing is created. Returns 1 when one of them can't fit."""
    from launcher.checks.validate import check_problems
    from launcher.plan import build, show

    plans, labels = [], []
    for run in composition.runs:
        check_problems(run.config, run.overrides, run.swept)
        plans.append(build.make(run.config))
        labels.append(" ".join(run.swept) or run.config.method.name)
    show.print_plans(plans, labels)
    return 0 if all(plan.fits or plan.config.plan.force for plan in plans) else 1


def check(composition: Composition) -> None:
    """Raise UsageError for the first configuration that cannot be run; the line names it in a sweep."""
    from launcher.architecture.families import check_family
    from launcher.checks.sources import check_sources_exist
    from launcher.checks.validate import check_directory, check_problems
    from launcher.config.sweep import label
    from launcher.neuron.checks import check_trainable
    from launcher.neuron.libraries import check_libraries
    from launcher.plan.build import check_runnable, room
    from launcher.plan.disk import check_room_for
    from launcher.run_dir.create import occupied
    from launcher.run_dir.layout import RunDir
    from launcher.run_dir.resume import find_changes, holds_run, remaining

    total, rooms = len(composition.runs), []
    for number, run in enumerate(composition.runs):
        try:
            check_problems(run.config, run.overrides, run.swept)
            check_trainable(run.config)
            if not run.config.dry_run:
                check_runnable(run.config)
                check_family(run.config)
                check_sources_exist(run.config)
            stages = run.config.stages
            if run.fixed_name and holds_run(run.directory):
                find_changes(run.config, run.directory)  # the room that it takes already is counted as it trains
                stages = remaining(run.config, RunDir(run.directory))
            else:
                check_directory(run.directory, occupied(run.directory) if run.fixed_name else None)
                rooms += [] if run.config.dry_run or (needed := room(run.config)) is None else [needed]
            if not run.config.dry_run:
                check_libraries(run.config, stages)
        except UsageError as error:
            if composition.sweep_dir is None:
                raise
            raise UsageError(f"{label(number, total, run.swept)}: {error}") from error
    check_room_for(composition.runs[0].directory.parent, rooms)
    directories = [run.directory for run in composition.runs]
    if len(set(directories)) < total:
        raise UsageError("hydra.sweep.subdir gives several runs the same directory; put ${hydra.job.num} into it")
