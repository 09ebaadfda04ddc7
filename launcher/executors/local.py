"""Runs on this machine: the stages of one run in order, each as its own process, and the runs one after another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.config.schema import Config
from launcher.config.secrets import redact
from launcher.errors import TrntuneError
from launcher.jobs.job import TRAIN, Job, jobs
from launcher.jobs.supervisor import Interrupts, counting_interrupts, run_stage
from launcher.jobs.torchrun import stage_command
from launcher.jobs.variables import variables
from launcher.paths import shown
from launcher.run_dir.attempts import counted
from launcher.run_dir.layout import RunDir
from launcher.run_dir.resume import finished

if TYPE_CHECKING:
    from launcher.config.compose import Composition

CommandOf = Callable[[str, Path, int, bool], list[str]]


def execute(composition: Composition, overrides: list[str]) -> int:
    """Run the configurations one after another, and report. Returns the exit code."""
    from launcher.run import run_single
    from launcher.sweep.run_sweep import run_sweep

    if composition.sweep_dir is None:
        return run_single(composition.runs[0], run_stages)
    return run_sweep(composition, overrides, run_stages)


def processes_here(job: Job) -> int:
    """Processes of a job that the launcher starts: all are on this machine."""
    return 1 if job.is_own_launcher else job.processes


def run_stages(config: Config, run_dir: RunDir, command_of: CommandOf = stage_command) -> int:
    """Run the configured stages that have not finished, in order, and stop at the first that fails. Returns the run's
    exit code."""
    with counting_interrupts() as interrupts:
        for job in jobs(config):
            # One that ran has removed the results of those after it, which are made from its own.
            if finished(job.stage, config, run_dir):
                print(f"{shown(run_dir.path)}: stage {job.stage} has finished already", file=sys.stderr)
                continue
            started = partial(_start, job, config, run_dir, command_of, interrupts)
            try:
                code = counted(run_dir, started) if job.stage == TRAIN else started({})
            except TrntuneError as error:  # of this run: a sweep goes on with the next one
                print(f"error: {redact(str(error))}", file=sys.stderr)
                return error.exit_code
            if code != 0:
                return code
            if interrupts.count and job.stage != config.stages[-1]:
                return interrupts.exit_code
    return 0


def _start(
    job: Job,
    config: Config,
    run_dir: RunDir,
    command_of: CommandOf,
    interrupts: Interrupts,
    more: Mapping[str, str],
) -> int:
    """Run the job's processes; ``more`` are variables for them beside the configuration's."""
    processes = processes_here(job)
    command = command_of(job.stage, run_dir.path, processes, job.elastic)
    return run_stage(job.stage, run_dir, command, processes, interrupts, {**variables(job.stage, config), **more})
