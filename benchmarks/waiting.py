"""`python -m benchmarks.waiting`: how OpenMP's threads should wait for each other, alone and beside other programs.

A thread that reached the end of a small product waits for the others in a barrier. By default libgomp lets it spin for
a while when there are no more threads than CPUs, which is fastest when each thread has a CPU for itself, and burns what
another program (or the very thread that is waited for) needs when it hasn't. Real runs of `launch.py`, interleaved,
each with one of the settings in its environment; then the same beside processes that do nothing but compute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launcher.cli import Parser, process_entry
from launcher.errors import TrntuneError, UsageError
from launcher.jobs.variables import WAITING
from launcher.paths import ROOT

# The runtimes' own default comes first: what all others are compared with. Any of these variables keeps the launcher
# from choosing; this one libgomp doesn't read, and the value is the other runtimes' own.
SETTINGS: dict[str, dict[str, str]] = {
    "default": {"KMP_BLOCKTIME": "200"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
}
_COMMON = (
    "tracking=none", "tracking.samples=0", "tracking.skip_steps=2", "training.eval_every=null",
    "training.save_every=null", "training.warmup_steps=0", "dataset.eval_samples=2",
)  # fmt: skip
MODELS: dict[str, tuple[str, ...]] = {
    "tiny": ("experiment=tiny", "training.max_steps=40", "training.epochs=50"),
    "smollm2_135m": ("training.max_steps=8", "training.max_length=512", "training.global_batch_size=1"),
}
_BUSY = "while True: pass"


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _run(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.waiting", description=__doc__, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="default: all")
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2], help="busy processes beside (default: 0 1 2)")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        raise UsageError(f"--repeats {arguments.repeats}: at least 1")
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    names = ["default", *(name for name in arguments.settings if name != "default")]
    result = [
        {"model": model, "busy": busy, "seconds": measure(model, busy, names, arguments.repeats)}
        for model in arguments.models
        for busy in arguments.busy
    ]
    Console(highlight=False).print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(model: str, busy: int, names: list[str], repeats: int) -> dict[str, list[float]]:
    """Mean seconds of a step, one for each repeat of each setting; every round begins with another setting."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with busy_processes(busy):
        for number in range(repeats):
            start = number % len(names)
            for name in [*names[start:], *names[:start]]:
                seconds[name].append(step_seconds(model, SETTINGS[name]))
                print(f"{model}, {busy} busy, round {number + 1}: {name} {seconds[name][-1]:.4f} s", flush=True)
    return seconds


def step_seconds(model: str, setting: dict[str, str]) -> float:
    """The mean of the steps that a run of the model measures."""
    env = {name: value for name, value in os.environ.items() if name not in WAITING}
    env |= setting
    with tempfile.TemporaryDirectory(prefix="waiting-") as scratch:
        command = [sys.executable, str(ROOT / "launch.py"), *MODELS[model], *_COMMON, "hydra.run.dir=run"]
        done = subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True)
        if done.returncode:
            raise TrntuneError(f"{' '.join(command)} failed: {' '.join(done.stderr.split()[-40:])}")
        result = json.loads((Path(scratch) / "run" / "stages" / "train.json").read_text())
    return float(result["measured_seconds"]) / int(result["measured_steps"])


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that compute until the block ends."""
    started = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def table(result: list[dict[str, Any]]) -> Table:
    """Medians of each setting, with their ranges, and the ratio to the runtime's own default."""
    shown = Table(title="Seconds of a step by how OpenMP's threads wait")
    for column in ("model", "busy", "setting", "seconds", "range", "x"):
        shown.add_column(column, justify="left" if column in ("model", "setting") else "right")
    for case in result:
        base = statistics.median(case["seconds"]["default"])
        for name, found in case["seconds"].items():
            middle = statistics.median(found)
            spread = f"{min(found):.4f} to {max(found):.4f}"
            shown.add_row(case["model"], str(case["busy"]), name, f"{middle:.4f}", spread, f"{middle / base:.3f}")
    return shown


if __name__ == "__main__":
    sys.exit(main())
