"""Runs that are ended by whatever, and started again: how they are started, and what they left."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from launcher.paths import ROOT
from tests.conftest import TINY, Run, command, environment
from tests.limits import PATIENCE, until

# Twelve steps of two micro batches: 40 examples make a pass of four, so that most steps lie inside one.
SETTINGS = (
    *TINY,
    "tracking=none",
    "tracking.samples=1",
    "training.max_steps=12",
    "training.epochs=5",
    "training.global_batch_size=4",
    "training.eval_every=4",
    "training.save_every=3",
)
DROPOUT = "lora.dropout=0.2"
LORA, FULL, TWO = (DROPOUT,), ("method=full",), (DROPOUT, "parallelism=ddp2")
BESIDE = (
    *(DROPOUT, "lora.target_modules=[all-linear]", "lora.rank_pattern={q_proj:4}", "lora.layers_to_transform=[1]"),
    *("lora.modules_to_save=[model.norm,layers.0.input_layernorm]", "lora.trainable_token_indices=[65,66]"),
    "lora.quantize_base=nf4",
)
EARLY = ("training.early_stopping_patience=5",)


def kill(op: str, path: str, count: int = 1, number: int = signal.SIGKILL) -> dict[str, Any]:
    return {"op": op, "path": path, "count": count, "signal": int(number)}


def at_line(count: int, number: int = signal.SIGKILL) -> dict[str, Any]:
    """As the line of this number is about to be written. A process that begins at step 0 writes the evaluation of the
    untrained model, then a line a step, until a save or an evaluation adds one."""
    return kill("open", r"metrics\.jsonl:a$", count, number)


# One chain of faults: each line ends one attempt. An attempt that goes on writes no line for step 0.
CHAINS = {
    "lora": (
        LORA,
        [at_line(3), at_line(3), kill("fsync", r"step-6\.tmp/optimizer"), kill("rename", r"step-9\.tmp$"), at_line(3)],
    ),
    "full, early stopping, rows that are streamed": (
        (*FULL, *EARLY, "dataset.streaming=true"),
        [at_line(8), kill("open", r"step-9\.tmp/manifest\.json:w"), kill("mkdir", r"step-12\.tmp$")],
    ),
    "what peft trains beside its matrices, on a base in 4 bit": (
        BESIDE,
        [at_line(5), kill("rename", r"step-6\.tmp$")],
    ),
    "two processes": (
        TWO,
        [at_line(5), kill("fsync", r"step-6\.tmp/rng-00001"), kill("fsync", r"checkpoints$", 2)],
    ),
}


def start(
    directory: Path,
    *arguments: str,
    fault: dict[str, Any] | None = None,
    timeout: float = PATIENCE,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    """launch.py on the run directory, with a fault in whichever of its processes comes to it."""
    env = environment() | dict(variables)
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
    times = (
        "seconds",
        "per_second",
        "flops",
        "memory",
        "mfu",
        "attempts",
        "checkpoints",
        "lost_steps",
        "cost",
        "instances",
    )
    for key in expected:
        if not any(part in key for part in times):
            assert result[key] == expected[key], key


def committed(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def copy_without_result(source: Path, target: Path) -> Path:
    """A run as if it had been killed after its last checkpoint."""
    shutil.copytree(source, target)
    (target / "stages" / "train.json").unlink()
    shutil.rmtree(target / "adapter")
    return target


def wait_for_step(directory: Path, step: int, process: subprocess.Popen[str]) -> None:
    metrics = directory / "metrics.jsonl"
    until(lambda: process.poll() is not None or (metrics.exists() and f'"step": {step},' in metrics.read_text()))
    assert process.poll() is None, process.communicate()
