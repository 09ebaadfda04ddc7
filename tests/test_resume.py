"""A run that is ended by whatever and started again is bit for bit the run that was never ended: real processes."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher.attempts import Attempts
from launcher.paths import ROOT
from tests.conftest import TINY, Run, command, environment

# Twelve steps of two micro batches: 40 examples make a pass of four, so that most steps lie inside one.
SETTINGS = (
    *TINY,
    "tracking=none",
    "tracking.samples=1",
    "training.max_steps=12",
    "training.epochs=3",
    "training.global_batch_size=4",
    "training.eval_every=4",
    "training.save_every=3",
)
DROPOUT = "lora.dropout=0.2"
LORA, FULL, TWO = (DROPOUT,), ("method=full",), (DROPOUT, "parallelism=ddp2")
EARLY = ("training.early_stopping_patience=5",)


def kill(op: str, path: str, count: int = 1, number: int = signal.SIGKILL) -> dict[str, Any]:
    return {"op": op, "path": path, "count": count, "signal": int(number)}


def at_step(step: int, number: int = signal.SIGKILL) -> dict[str, Any]:
    """As the line of this step is about to be written, in a process that begins at step 0 with an evaluation."""
    return kill("open", r"metrics\.jsonl$", step, number)


def start(directory: Path, *arguments: str, fault: dict[str, Any] | None = None, timeout: float = 240) -> Run:
    """launch.py on the run directory, with a fault in whichever of its processes comes to it."""
    env = environment()
    if fault is not None:
        env |= {"TRNTUNE_FAULT": json.dumps(fault), "PYTHONPATH": str(ROOT / "tests" / "faults")}
    arguments = (*SETTINGS, f"hydra.run.dir={directory}", *arguments)
    process = subprocess.run(
        command(*arguments), cwd=directory.parent, env=env, capture_output=True, text=True, timeout=timeout
    )
    return Run(directory, process)


def record(directory: Path) -> list[tuple[Any, ...]]:
    """What a run did, in order, without its times."""
    keys = ("event", "step", "epoch", "loss", "learning_rate", "grad_norm", "sample_ids", "eval_loss", "tokens")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [tuple(repr(line.get(key)) for key in keys) for line in lines if line["event"] != "checkpoint"]


def weights(directory: Path) -> bytes:
    [file] = [*directory.glob("adapter/*.safetensors"), *directory.glob("model/*.safetensors")]
    return file.read_bytes()


def assert_same(directory: Path, reference: Path) -> None:
    assert record(directory) == record(reference)
    assert weights(directory) == weights(reference)
    assert (directory / "samples.jsonl").read_bytes() == (reference / "samples.jsonl").read_bytes()
    result, expected = (json.loads((d / "stages" / "train.json").read_text()) for d in (directory, reference))
    times = ("seconds", "per_second", "flops", "memory", "mfu", "attempts", "checkpoints", "lost_steps", "cost")
    for key in expected:
        if not any(part in key for part in times):
            assert result[key] == expected[key], key


def committed(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Runs that nothing disturbs, by their settings."""
    known: dict[tuple[str, ...], Path] = {}

    def of(*arguments: str) -> Path:
        if arguments not in known:
            directory = tmp_path_factory.mktemp("reference") / "run"
            run = start(directory, *arguments)
            assert run.process.returncode == 0, run.process.stderr
            known[arguments] = directory
        return known[arguments]

    return of


# One chain of faults: each line ends one attempt. An attempt that goes on writes no line for step 0.
CHAINS = {
    "lora": (
        LORA,
        [at_step(3), at_step(3), kill("fsync", r"step-6\.tmp/optimizer"), kill("rename", r"step-9\.tmp$"), at_step(3)],
    ),
    "full, early stopping": (
        (*FULL, *EARLY),
        [at_step(8), kill("open", r"step-9\.tmp/manifest"), kill("mkdir", r"step-12\.tmp$")],
    ),
    "two processes": (
        TWO,
        [at_step(5), kill("fsync", r"step-6\.tmp/rng-00001"), kill("fsync", r"checkpoints$", 2)],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_that_is_killed_again_and_again_is_the_run_that_was_not(name, reference, tmp_path):
    arguments, faults = CHAINS[name]
    directory = tmp_path / "run"
    for fault in faults:
        run = start(directory, *arguments, fault=fault)
        assert run.process.returncode == 1, (fault, run.process.stderr)
        assert not (directory / "stages" / "train.json").exists()
    last = start(directory, *arguments)
    assert last.process.returncode == 0, last.process.stderr
    assert "going on after step" in last.process.stderr
    assert_same(directory, reference(*arguments))
    assert last.result["attempts"] == len(faults) + 1
    assert last.result["lost_steps"] > 0
    assert committed(directory) == ["step-12", "step-9"]
    *outcomes, end = [attempt.outcome for attempt in Attempts(directory / "attempts.jsonl").read()]
    # A rank whose peer is killed may still say that it failed.
    assert set(outcomes) <= {"died", "failed"}
    assert end == "finished"


def test_a_finished_run_that_is_started_again_does_nothing(reference, tmp_path):
    directory = reference(*LORA)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.name != "run.lock"}
    run = start(directory, *LORA)
    assert run.process.returncode == 0, run.process.stderr
    assert "stage train has finished already" in run.process.stderr
    assert "trainable parameters" in run.process.stdout
    after = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.name != "run.lock"}
    assert {path for path in after if after[path] != before.get(path) and path.is_file()} == set()
