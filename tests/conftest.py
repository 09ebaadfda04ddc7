"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.local import available_cpus
from launcher.paths import ROOT

# The workers of pytest-xdist share the CPUs: with a thread for every CPU each, theirs and those of the runs that they
# start would mostly wait for each other. Before torch is imported.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // WORKERS)))

# Two random layers on 40 rows: what a run leaves behind is the same as for a real model, in seconds.
TINY = ("experiment=tiny", "tracking.samples=1", "tracking.sample_tokens=4")


@dataclass(frozen=True)
class Run:
    """A finished command and the run directory that it was told to use."""

    directory: Path
    process: subprocess.CompletedProcess[str]

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.directory / "stages" / "train.json").read_text())

    def metrics(self, event: str) -> list[dict[str, Any]]:
        lines = (self.directory / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == event]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch.py"), *arguments]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    # A tiny run is over before MLflow's monitor would have looked a first time.
    return {**kept, "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.2"}


def launch(cwd: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs launch.py in ``cwd`` until it ends."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture
def run_tiny(tmp_path: Path) -> Callable[..., Run]:
    """Runs `launch.py experiment=tiny ...` in an empty directory, into the run directory of the given name."""

    def run(name: str, *arguments: str) -> Run:
        directory = tmp_path / name
        return Run(directory, launch(tmp_path, *TINY, f"hydra.run.dir={directory}", *arguments))

    return run
