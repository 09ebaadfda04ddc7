"""`python -m benchmarks.startup`: from the command to the first training step, against what can't be avoided.

Interleaved, each in processes of its own: `launch.py` with everything in the cache, until its first optimizer step
begins, and a process that imports torch and transformers and loads the same model and its tokenizer. What a run
computes before that step because it is asked to (the held-out loss, answers) is kept to one short row and no answer.
CPU seconds are of the processes until then: they tell more than the clock on a machine that does other things too.

A second measurement composes and checks a sweep of 1,000 configurations (`dry_run=true`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from launcher.cli import Parser, process_entry
from launcher.config.compose import Composer
from launcher.errors import TrntuneError, UsageError
from launcher.jobs.supervisor import child_environment
from launcher.paths import ROOT

_ALONE = (
    "import sys, torch, transformers\n"
    "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    "AutoTokenizer.from_pretrained(sys.argv[1])\n"
    "AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
)
_POLL_SECONDS = 0.01
_MAX_SECONDS = 600.0


@dataclass(frozen=True)
class Sample:
    """One start."""

    seconds: float
    cpu_seconds: float


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _run(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.startup", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="smollm2_135m", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--configurations", type=int, default=1000, help="of the sweep (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        raise UsageError(f"--repeats {arguments.repeats}: at least 1")
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="startup-", dir=Path.cwd()) as scratch:
        result = _starts(arguments.model, arguments.repeats, Path(scratch))
        result["sweep"] = _sweep(arguments.configurations, Path(scratch))
    Console(highlight=False).print(_table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _starts(model: str, repeats: int, scratch: Path) -> dict[str, Any]:
    from trainer.fetch.sources import fetch_model

    config = Composer().compose([f"model={model}"], multirun=False).runs[0].config
    alone = [sys.executable, "-c", _ALONE, str(fetch_model(config.model))]
    samples: dict[str, list[Sample]] = {"alone": [], "tracking=none": [], "tracking=mlflow": []}
    _launched(model, "none", scratch / "first")  # fills the caches of data and of the disk
    for number in range(repeats):
        samples["alone"].append(_until_end(alone, scratch))
        for tracking in ("none", "mlflow"):
            samples[f"tracking={tracking}"].append(_launched(model, tracking, scratch / f"{tracking}-{number}"))
    base = _medians(samples["alone"])
    return {
        name: {
            **asdict(_medians(found)),
            "ratio": _medians(found).seconds / base.seconds,
            "cpu_ratio": _medians(found).cpu_seconds / base.cpu_seconds,
            "samples": [asdict(sample) for sample in found],
        }
        for name, found in samples.items()
    }


def _medians(samples: list[Sample]) -> Sample:
    return Sample(
        statistics.median(sample.seconds for sample in samples),
        statistics.median(sample.cpu_seconds for sample in samples),
    )


def _until_end(command: list[str], directory: Path) -> Sample:
    began = time.perf_counter()
    with psutil.Popen(command, cwd=directory, env=child_environment(1), stdout=subprocess.DEVNULL) as process:
        cpu = 0.0
        while process.poll() is None:
            cpu = max(cpu, _cpu_seconds(process))
            time.sleep(_POLL_SECONDS)
        if process.returncode:
            raise TrntuneError(f"{command[0]} failed")
    return Sample(time.perf_counter() - began, cpu)


def _launched(model: str, tracking: str, directory: Path) -> Sample:
    """Start a run, and end it when its first step is reported; the step's own time is taken off again."""
    command = [
        sys.executable, str(ROOT / "launch.py"), f"model={model}", f"tracking={tracking}", f"hydra.run.dir={directory}",
        "training.max_steps=3", "training.max_length=64", "training.global_batch_size=1", "tracking.samples=0",
        "dataset.eval_samples=1",
    ]  # fmt: skip
    began = time.perf_counter()
    with psutil.Popen(command, cwd=directory.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while (step := _first_step(directory / "metrics.jsonl")) is None:
            if process.poll() is not None or time.perf_counter() - began > _MAX_SECONDS:
                raise TrntuneError(f"no step: {process.stderr.read().decode()[-500:]}")
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - began - step
        cpu = _cpu_seconds(process)
        _end(process)
    return Sample(seconds, cpu)


def _end(process: psutil.Process) -> None:
    """What a run does after its first step would only disturb the next measurement."""
    running = [process, *process.children(recursive=True)]
    for each in running:
        with contextlib.suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(running)


def _cpu_seconds(process: psutil.Process) -> float:
    """Of a process and its children, ended ones too."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        for each in [process, *process.children(recursive=True)]:
            times = each.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _first_step(metrics: Path) -> float | None:
    """Seconds of the first step, once it is reported."""
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return next((record["step_seconds"] for record in records if record["event"] == "train"), None)


def _sweep(configurations: int, scratch: Path) -> dict[str, float]:
    """Composing, checking and printing a sweep that is not submitted."""
    command = [
        sys.executable, str(ROOT / "launch.py"), "-m", "experiment=tiny", "tracking=none", "cluster=slurm",
        "dry_run=true", f"seed=range({configurations})", "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    sample = _until_end(command, scratch)
    return {"configurations": configurations, **asdict(sample)}


def _table(result: dict[str, Any]) -> Table:
    sweep = result["sweep"]
    title = (
        f"Until the first step. A sweep of {sweep['configurations']:,} configurations: {sweep['seconds']:.1f} s "
        f"({sweep['cpu_seconds']:.1f} s CPU)"
    )
    shown = Table(title=title)
    for column in ("", "seconds", "x", "CPU seconds", "x"):
        shown.add_column(column, justify="right" if column else "left")
    for name, found in result.items():
        if name != "sweep":
            numbers = (found[key] for key in ("seconds", "ratio", "cpu_seconds", "cpu_ratio"))
            shown.add_row(name, *(f"{number:.2f}" for number in numbers))
    return shown


if __name__ == "__main__":
    sys.exit(main())
