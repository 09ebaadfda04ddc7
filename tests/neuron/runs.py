"""Trainings with the real optimum-neuron, in processes that have stand-ins for what is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.jobs.helper_process import python_module
from launcher.jobs.torchrun import torchrun
from launcher.paths import ROOT
from tests.limits import until

SMALL = (
    "experiment=tiny",
    "parallelism=single",
    "tracking.enabled=false",
    "training.max_length=512",  # of which a row holds up to three samples
    "dataset.max_samples=64",
)
ROUNDING = 3e-6  # fp32, relative
TP2 = ("parallelism.tensor_parallel=2", "parallelism.sequence_parallel=true")


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


def assert_close(one: Path, other: Path) -> None:
    """The curves of two runs differ by rounding alone."""
    expected, found = Curve.read(one), Curve.read(other)
    assert expected.steps.keys() == found.steps.keys()
    for step in expected.steps:
        assert found.steps[step] == pytest.approx(expected.steps[step], rel=ROUNDING), step
    assert found.held_out == pytest.approx(expected.held_out, rel=ROUNDING)


@dataclass(frozen=True)
class Processes:
    """How a training's processes are started: the directory of this one that comes first on their PYTHONPATH, whose
    sitecustomize.py imports the stand-ins."""

    site: str

    def environment(self, chip: str = "trn1") -> dict[str, str]:
        """On what neuronx_distributed takes for a ``chip``."""
        places = [str(Path(__file__).parent / self.site), str(ROOT), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(places),
            "PJRT_DEVICE": "CPU",
            "OMP_NUM_THREADS": "1",
            "NEURON_PLATFORM_TARGET_OVERRIDE": chip,
        }

    def go_on(self, directory: Path, processes: int, chip: str = "trn1") -> str:
        """Train, or go on, to the end. Returns what was said."""
        command, env = _command(directory, processes), self.environment(chip)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    def kill_after_checkpoint(self, directory: Path, processes: int, step: int) -> None:
        """Train, and kill -9 every process as soon as the step is saved."""
        command, env = _command(directory, processes), self.environment()
        with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, start_new_session=True) as process:
            manifest = directory / "checkpoints" / f"step-{step}" / "manifest.json"
            until(lambda: process.poll() is not None or manifest.exists())
            assert process.poll() is None, "training ended before it was killed"
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            os.kill(process.pid, signal.SIGKILL)


def _command(directory: Path, processes: int) -> list[str]:
    return torchrun(python_module("launcher.jobs.run_stage", "train", str(directory)), processes, ["--standalone"])


def launch(directory: Path, *overrides: str) -> Path:
    """Run launch.py; returns ``directory``, the run's."""
    command = [sys.executable, str(ROOT / "launch.py"), *SMALL, *overrides, f"hydra.run.dir={directory}"]
    done = subprocess.run(command, cwd=directory.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


def result(directory: Path) -> dict[str, Any]:
    """What training left for later stages."""
    content: dict[str, Any] = json.loads((directory / "stages" / "train.json").read_text())
    return content
