"""The FPFT/PEFT comparison of a sweep: full fine-tuning as base, every other run as a ratio to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launcher import units
from postprocess.results import RunResult, read_run

# Runs are put into one ratio only when all of these agree: dotted keys of the configuration.
COMPARABLE = (
    "model",
    "dataset",
    "parallelism",
    "accelerator",
    "training.max_length",
    "training.global_batch_size",
    "training.precision",
    "tracking.skip_steps",
)
# The same for the training stage's result.
COMPARABLE_RESULTS = ("definitions", "hardware")

METRICS = (
    ("trainable_params", "trainable parameters", units.count),
    ("samples_per_second", "samples/s", units.decimal),
    ("tokens_per_second", "real tokens/s", units.decimal),
    ("tokens_per_second_padded", "padded tokens/s", units.decimal),
    ("step_seconds_p50", "step, median s", units.decimal),
    ("wall_seconds", "wall time", units.seconds),
    ("train_seconds", "training time", units.seconds),
    ("peak_memory_bytes", "peak memory", units.gigabytes),
    ("cost_usd", "cost", units.dollars),
    ("eval_loss_after", "held-out loss after", lambda value: units.decimal(value, 4)),
)


def print_sweep(directories: list[Path]) -> None:
    """The comparison of the runs of a sweep, failed ones named."""
    console = Console(highlight=False)
    runs = [read_run(directory) for directory in directories]
    done = [run for run in runs if run.train is not None and run.train["status"] != "interrupted"]
    console.print()
    if done:
        console.print(comparison(done))
        for line in notes(done):
            console.print(escape(line), soft_wrap=True)
    for run in runs:
        if run not in done:
            console.print(escape(f"not compared: {run.directory} (it did not finish)"), soft_wrap=True)
    for run in runs:
        console.print(escape(f"run directory  {run.directory}"), soft_wrap=True)


def base_of(runs: list[RunResult]) -> RunResult:
    """Full fine-tuning where there is a run of it, else the first run."""
    return next((run for run in runs if run.config["method"]["name"] == "full"), runs[0])


def differences(run: RunResult, base: RunResult) -> list[str]:
    """What keeps two runs from being compared: "training.max_length: 512, not 1024"."""
    found = []
    for key in COMPARABLE:
        mine, theirs = _value(run.config, key), _value(base.config, key)
        if mine != theirs:
            found.append(f"{key}: {_short(mine)}, not {_short(theirs)}")
    assert run.train is not None
    assert base.train is not None
    for key in COMPARABLE_RESULTS:
        if run.train[key] != base.train[key]:
            found.append(f"{key}: {_short(run.train[key])}, not {_short(base.train[key])}")
    return found


def comparison(runs: list[RunResult]) -> Table:
    """A column a run; ratios only beside runs that may be compared with the base."""
    base = base_of(runs)
    ordered = [base, *(run for run in runs if run is not base)]
    comparable = [not differences(run, base) for run in ordered]
    table = Table(title="FPFT against PEFT" if _has_both(runs) else "Comparison", title_justify="left")
    table.add_column("")
    for run, fits in zip(ordered, comparable, strict=True):
        table.add_column(escape(label(run)), justify="right")
        if run is not base and fits:
            table.add_column(f"ratio to {escape(label(base))}", justify="right")
    for key, name, format_value in METRICS:
        cells = []
        for run, fits in zip(ordered, comparable, strict=True):
            value = _metric(run, key)
            cells.append(format_value(value))
            if run is not base and fits:
                cells.append(units.ratio(value, _metric(base, key)))
        if any(cell != units.DASH for cell in cells):
            table.add_row(name, *cells)
    return table


def notes(runs: list[RunResult]) -> list[str]:
    """Why runs have no ratio, and what to know before a ratio is quoted."""
    base = base_of(runs)
    lines = []
    for run in runs:
        reasons = [] if run is base else differences(run, base)
        if reasons:
            lines.append(f"no ratio for {label(run)}: it differs from {label(base)} in {'; '.join(reasons)}")
    steps = {run.train["steps"] for run in runs if run.train is not None}
    if len(steps) > 1:
        lines.append(f"note: the runs took different numbers of steps ({', '.join(map(str, sorted(steps)))})")
    return lines


def label(run: RunResult) -> str:
    """What was swept, or the method."""
    job = run.directory / ".hydra" / "overrides.yaml"
    swept = run.directory.name.partition("_")[2] if job.exists() else ""
    return swept if "=" in swept else str(run.config["method"]["name"])


def _has_both(runs: list[RunResult]) -> bool:
    methods = {run.config["method"]["name"] for run in runs}
    return {"full", "lora"} <= methods


def _metric(run: RunResult, key: str) -> float | None:
    assert run.train is not None
    value: float | None = run.train.get(key)
    return value


def _value(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("name") or json.dumps(value, sort_keys=True))
    return str(value)
