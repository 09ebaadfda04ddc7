"""Making a run's directory, or taking up the run that it holds, before its stages run or are submitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.io import write_json
from launcher.plan.build import preflight_json
from launcher.run_dir.create import create, make_private
from launcher.run_dir.layout import RunDir
from launcher.run_dir.lock import RunLock
from launcher.run_dir.provenance import write_records
from launcher.run_dir.resume import holds_run, record_changes

if TYPE_CHECKING:
    from launcher.config.compose import Composed

# "directory" and "mlflow_parent_run_id" of the sweep that a run belongs to.
Sweep = Mapping[str, str | None]


@contextmanager
def prepared(run: Composed, directory: Path, fixed_name: bool, sweep: Sweep | None = None) -> Iterator[RunDir]:
    """The run's directory with everything written down; no other process takes it up until the block ends."""
    path = create(directory, fixed_name)
    make_private(Path(run.config.output_dir).expanduser().absolute())  # holds the default MLflow file
    with RunLock(path, "launch.py"):
        if holds_run(path) and RunDir(path).job.exists():
            record_changes(run.config, run.overrides, path)
        else:
            write_json(RunDir(path).plan, preflight_json(run.config))
            write_records(RunDir(path), run.config, run.hydra, run.overrides, sweep)
        yield RunDir(path)
