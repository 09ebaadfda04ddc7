"""The runs of a sweep, one after another, and the comparison at the end."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.config.sweep import label
from launcher.errors import INTERRUPTED, SUSPENDED
from launcher.io import write_json
from launcher.jobs.helper_process import show
from launcher.paths import shown
from launcher.run import RunStages, has_trained, start
from launcher.run_dir.create import create
from launcher.run_dir.lock import RunLock
from launcher.sweep import parent_run as parents

if TYPE_CHECKING:
    from launcher.config.compose import Composition
    from launcher.sweep.parent_run import ParentRun


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


def run_sweep(composition: Composition, overrides: list[str], run_stages: RunStages) -> int:
    """Run the configurations one after another; a failed one stops none of the others, an interrupted one all."""
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
    runs = [
        {"directory": run.directory.name, "overrides": list(run.overrides), "exit_code": run.exit_code}
        for run in finished
    ]
    mlflow = parent.to_json() if parent else None
    write_json(base / "sweep.json", {"overrides": overrides, "runs": runs, "mlflow": mlflow})


def report_sweep(finished: list[Finished], total: int) -> int:
    """Print the comparison and the failed runs. Returns the sweep's exit code."""
    shown_code = 0
    if any(has_trained(run.directory) for run in finished):
        shown_code = show("postprocess.compare.publish", finished[0].directory.parent, "no report")
    failed = [run for run in finished if run.exit_code != 0 and not run.stopped]
    if failed:
        names = ", ".join(f"{run.directory.name} (exit code {run.exit_code})" for run in failed)
        print(f"error: {len(failed)} of {total} runs failed: {names}", file=sys.stderr)
    if finished[-1].stopped:
        print(f"interrupted: {len(finished)} of {total} runs were started", file=sys.stderr)
        return finished[-1].exit_code
    return 1 if failed else shown_code
