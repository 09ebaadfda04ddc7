"""What a person sees at the end of a run: `python -m postprocess.summary RUN_DIR`."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launcher import units
from launcher.cli import process_entry
from launcher.run_dir.layout import RunDir
from launcher.run_dir.result import RunStatus

_ENDINGS = {
    RunStatus.FINISHED: "finished",
    RunStatus.EARLY_STOPPED: "stopped early: the held-out loss no longer fell",
    RunStatus.INTERRUPTED: "interrupted: what was reached is saved",
}
# Names of the parts of the wall time, in the order in which they happen.
PARTS = {
    "load_seconds": "load",
    "data_seconds": "data",
    "compile_seconds": "compile",
    "train_seconds": "train",
    "eval_seconds": "evaluate",
    "sample_seconds": "answer",
    "save_seconds": "save",
}


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(_shown, argv)


def _shown(argv: list[str]) -> int:
    print_run(Path(argv[0]))
    return 0


@dataclass(frozen=True)
class RunResult:
    """One run: its directory, its resolved configuration, and the training stage's numbers (None: it has none)."""

    directory: Path
    config: dict[str, Any]
    train: dict[str, Any] | None


def read_run(directory: Path) -> RunResult:
    """Read a run directory."""
    run_dir = RunDir(directory)
    return RunResult(directory, run_dir.read_config(), run_dir.stage_result("train"))


def read_samples(directory: Path) -> list[dict[str, str]]:
    """The questions answered before and after, or none."""
    file = RunDir(directory).samples
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def print_run(directory: Path) -> None:
    """Table, answers and places of a run that has trained."""
    console = Console(highlight=False)
    run = read_run(directory)
    if run.train is None:
        console.print(f"{escape(str(directory))}: the training stage has not finished")
        return
    console.print()
    console.print(result_table(run.train))
    for number, sample in enumerate(read_samples(directory), start=1):
        console.print(sample_text(number, sample))
    console.print(places(run), soft_wrap=True)  # a path that is broken in two can't be copied


def result_rows(train: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and value of each line of the table."""
    parts = ", ".join(f"{name} {units.seconds(train[key])}" for key, name in PARTS.items() if train[key] >= 0.05)
    best = "" if train["best_step"] is None else f" (weights of step {train['best_step']})"
    best += f", on the base in {train['quantized_base']}" if train.get("quantized_base") else ""
    padded = (
        f"{units.decimal(train['tokens_per_second_padded'], 1)} with padding, {units.share(train['padding_fraction'])}"
    )
    p50, p95 = units.decimal(train["step_seconds_p50"]), units.decimal(train["step_seconds_p95"])
    rows = [
        (
            "trainable parameters",
            f"{units.count(train['trainable_params'])} of {units.count(train['total_params'])} "
            f"({units.share(train['trainable_fraction'])})",
        ),
        ("samples a second", units.decimal(train["samples_per_second"])),
        ("real tokens a second", f"{units.decimal(train['tokens_per_second'], 1)} ({padded})"),
        ("step time", f"{p50} s median, {p95} s p95 over {train['measured_steps']} of {train['steps']} steps"),
        ("wall time", f"{units.seconds(train['wall_seconds'])} ({parts})"),
        ("peak memory", units.gigabytes(train["peak_memory_bytes"])),
        (
            "held-out loss",
            f"{train['eval_loss_before']:.4f} before, {train['eval_loss_after']:.4f} after{best}",
        ),
    ]
    if train.get("weights_changed") is False:
        rows.insert(0, ("trained weights", "not one has changed: nothing was learned"))
    if train.get("attempts", 1) > 1:
        lost = f"{train['lost_steps']} steps, {units.seconds(train['lost_seconds'])}, done again"
        rows.append(("attempts", f"{train['attempts']} ({lost})"))
    if train["checkpoints"]["failed"]:
        saves = train["checkpoints"]
        rows.append(("checkpoints", f"{saves['saved']} written, {saves['failed']} failed: {saves['failures'][-1]}"))
    if train["peak_device_memory_bytes"] is not None:
        rows.append(("peak device memory", units.gigabytes(train["peak_device_memory_bytes"])))
    if train["mfu"] is not None:
        rows.append(("model FLOPs utilization", units.share(train["mfu"])))
    if train["cost_usd"] is not None:
        rows.append(("cost", units.dollars(train["cost_usd"])))
    return rows


def result_table(train: dict[str, Any]) -> Table:
    """The run in numbers."""
    title = f"{train['model']}, {train['method']}: {_ENDINGS[train['status']]}"
    table = Table(title=title, title_justify="left", show_header=False)
    for label, value in result_rows(train):
        table.add_row(label, value)
    return table


def sample_text(number: int, sample: dict[str, str]) -> str:
    """One held-out question with the reference and the answers before and after, as rich markup."""
    lines = [f"[bold]Question {number}: {escape(sample['instruction'])}[/bold]"]
    if sample["context"]:
        lines.append(f"  context    {escape(sample['context'])}")
    for label in ("reference", "before", "after"):
        text = " ".join(sample[label].split()) or "(an empty answer)"
        lines.append(f"  {label:<10} {escape(text)}")
    return "\n".join(lines) + "\n"


def places(run: RunResult) -> str:
    """Where everything is, as rich markup."""
    assert run.train is not None
    lines = [f"run directory  {run.directory}", f"metrics        {run.directory / 'metrics.jsonl'}"]
    if run.train["saved"]:
        lines.insert(1, f"weights        {run.directory / run.train['saved']}")
    mlflow = run.train.get("mlflow")
    if mlflow and mlflow["failure"] is None:
        lines.append(
            f"look at it     mlflow ui --backend-store-uri {shlex.quote(mlflow['uri'])}"
            if mlflow["uri"].startswith(("sqlite", "file", "/"))
            else f"look at it     {mlflow['uri']}"
        )
    elif mlflow and run.config["tracking"]["enabled"]:
        lines.append(f"MLflow         not complete: {mlflow['failure']}")
    return escape("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
