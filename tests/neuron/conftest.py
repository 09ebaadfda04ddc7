"""The real optimum-neuron trainer on a CPU.

It needs torch 2.8 with torch_xla 2.8, and on PYTHONPATH neuronx_distributed 0.15's source and the directory that holds
neuron_shim.py and lab_init.py: stand-ins for what only AWS ships, and collectives over gloo. None of them is part of
this project; without them these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.jobs.helper_process import python_module
from launcher.jobs.torchrun import torchrun
from launcher.paths import ROOT
from tests.limits import until

NEEDED = ("torch_xla", "neuronx_distributed", "neuron_shim", "lab_init")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
SMALL = (
    "experiment=tiny",
    "accelerator=trn1_32xlarge",
    "parallelism=single",
    "tracking.enabled=false",
    "training.max_length=128",
    "dataset.max_samples=64",
)
TP2 = ("parallelism.tensor_parallel=2", "parallelism.sequence_parallel=true")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not MISSING:
        return
    skip = pytest.mark.skip(reason=f"needs {', '.join(MISSING)}: see tests/neuron/conftest.py")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


@dataclass(frozen=True)
class Curve:
    """What a run logged: step to loss and gradient norm, and step to held-out loss."""

    steps: dict[int, tuple[float, float]]
    held_out: dict[int, float]

    @classmethod
    def read(cls, directory: Path) -> Curve:
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return cls(
            {r["step"]: (r["loss"], r["grad_norm"]) for r in records if r["event"] == "train"},
            {r["step"]: r["eval_loss"] for r in records if r["event"] == "eval"},
        )


def environment() -> dict[str, str]:
    places = [str(Path(__file__).parent / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1"}


def train_command(directory: Path, processes: int) -> list[str]:
    return torchrun(python_module("launcher.jobs.run_stage", "train", str(directory)), processes, ["--standalone"])


@pytest.fixture
def fetched(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run directory in which only training is left to do."""

    def fetch(name: str, *overrides: str) -> Path:
        directory = tmp_path / name
        command = [sys.executable, str(ROOT / "launch.py"), *SMALL, *overrides, "stages=[fetch]"]
        subprocess.run([*command, f"hydra.run.dir={directory}"], cwd=tmp_path, check=True, capture_output=True)
        return directory

    return fetch


@pytest.fixture
def train(fetched: Callable[..., Path]) -> Callable[..., Path]:
    """Trains in so many processes; returns the run directory."""

    def run(name: str, processes: int, *overrides: str) -> Path:
        directory = fetched(name, *overrides)
        go_on(directory, processes)
        return directory

    return run


def go_on(directory: Path, processes: int) -> str:
    """Train, or go on, to the end. Returns what was said."""
    done = subprocess.run(
        train_command(directory, processes), env=environment(), capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def kill_after_checkpoint(directory: Path, processes: int, step: int) -> None:
    """Train, and kill -9 every process as soon as the step is saved."""
    with subprocess.Popen(
        train_command(directory, processes), env=environment(), stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        manifest = directory / "checkpoints" / f"step-{step}" / "manifest.json"
        until(lambda: process.poll() is not None or manifest.exists())
        assert process.poll() is None, "training ended before it was killed"
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        os.kill(process.pid, signal.SIGKILL)


def result(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "stages" / "train.json").read_text())
    return content
