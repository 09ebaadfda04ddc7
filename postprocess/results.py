"""Reading what runs left on disk. Imports nothing that a report doesn't need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launcher.run_dir.layout import RunDir


@dataclass(frozen=True)
class RunResult:
    """One run: its directory, its resolved configuration, and the training stage's numbers (None: it has none)."""

    directory: Path
    config: dict[str, Any]
    train: dict[str, Any] | None


def read_run(directory: Path) -> RunResult:
    """Read a run directory."""
    run_dir = RunDir(directory)
    config = yaml.safe_load(run_dir.config_file.read_text(encoding="utf-8"))
    return RunResult(directory, config, run_dir.stage_result("train"))


def read_samples(directory: Path) -> list[dict[str, str]]:
    """The questions answered before and after, or none."""
    file = RunDir(directory).samples
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
