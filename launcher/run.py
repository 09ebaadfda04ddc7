"""One run: its directory, its stages, and what is shown of it at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import INTERRUPTED
from launcher.jobs.helper_process import show
from launcher.run_dir.layout import RunDir
from launcher.run_dir.prepare import prepared

if TYPE_CHECKING:
    from launcher.config.compose import Composed
    from launcher.config.schema import Config

# Runs or submits the stages of one run and returns its exit code.
RunStages = Callable[["Config", RunDir], int]


def run_single(run: Composed, run_stages: RunStages) -> int:
    """Run one configuration, and print its summary when it has trained."""
    directory, code = start(run, run.directory, run.fixed_name, run_stages)
    if code in (0, INTERRUPTED) and has_trained(directory):
        return show("postprocess.summary", directory, "no summary") or code
    return code


def start(
    run: Composed, directory: Path, fixed_name: bool, run_stages: RunStages, sweep: dict[str, str | None] | None = None
) -> tuple[Path, int]:
    """Make the run directory, or take up the run that it holds, and run the stages. Returns it and the exit code."""
    with prepared(run, directory, fixed_name, sweep) as run_dir:
        return run_dir.path, run_stages(run.config, run_dir)


def has_trained(directory: Path) -> bool:
    """True when the run's training stage has left a result."""
    return RunDir(directory).stage_result("train") is not None
