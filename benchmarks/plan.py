"""`python -m benchmarks.plan`: the plan's step time and memory against real runs on this machine.

The step time is a ratio within one moment: the plan measures the machine right before the run and right after it, and
their mean stands against the run's median step. Machines are shared, so every round is shown, and how far the two plans
were from each other: where they differ much, the run between them was disturbed too. Rounds are interleaved over the
cases.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.measure import show
from launcher.cli import Parser, process_entry
from launcher.config.secrets import redact
from launcher.errors import TrntuneError, UsageError
from launcher.paths import ROOT
from launcher.run_dir.provenance import software

SIZES = {
    "13m": (
        "model=tiny_llama",
        "model.architecture.hidden_size=384",
        "model.architecture.intermediate_size=1024",
        "model.architecture.layers=8",
        "model.architecture.heads=6",
        "model.architecture.kv_heads=2",
        "model.architecture.head_dim=64",
    ),
    "135m": ("model=smollm2_135m",),
}
METHODS = ("lora", "full")
SHORT = (
    "tracking=none",
    "tracking.samples=0",
    "tracking.skip_steps=1",
    "dataset.eval_samples=2",
    "training.eval_every=null",
    "training.save_every=null",
    "training.warmup_steps=0",
)


@dataclass(frozen=True)
class Case:
    """A model and a method."""

    size: str
    method: str

    @property
    def name(self) -> str:
        return f"{self.size}-{self.method}"

    def overrides(self, steps: int) -> tuple[str, ...]:
        """The configuration of its run: nothing but steps, so that no other work is in its memory."""
        return (*SIZES[self.size], f"method={self.method}", *SHORT, f"training.max_steps={steps}")


@dataclass(frozen=True)
class Round:
    """A run and the plans around it: seconds of an optimizer step, bytes of the process."""

    seconds_before: float
    seconds_after: float
    measured_seconds: float
    planned_bytes: float
    measured_bytes: float

    @property
    def planned_seconds(self) -> float:
        return statistics.mean((self.seconds_before, self.seconds_after))

    @property
    def time_ratio(self) -> float:
        """Planned / measured."""
        return self.planned_seconds / self.measured_seconds

    @property
    def memory_ratio(self) -> float:
        """Planned / measured."""
        return self.planned_bytes / self.measured_bytes

    @property
    def drift(self) -> float:
        """By what part of their mean the two plans differ: what changed on the machine meanwhile."""
        return abs(self.seconds_after - self.seconds_before) / self.planned_seconds


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _run(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.plan", description=__doc__, allow_abbrev=False)
    parser.add_argument("--sizes", default=",".join(SIZES), help="with commas (default: %(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--steps", type=int, default=6, help="of a run; the first is not counted (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        raise UsageError(f"--repeats {arguments.repeats}: at least 1")
    if arguments.steps < 2:
        raise UsageError(f"--steps {arguments.steps}: at least 2")
    sizes, methods = chosen("--sizes", arguments.sizes, SIZES), chosen("--methods", arguments.methods, METHODS)
    arguments.cases = [Case(size, method) for size in sizes for method in methods]
    return arguments


def chosen(option: str, text: str, allowed: Collection[str]) -> list[str]:
    """The names in ``text``. Raises UsageError for one that is not allowed."""
    names = text.split(",")
    for name in names:
        if name not in allowed:
            raise UsageError(f"{option} {name}: allowed are {', '.join(allowed)}")
    return names


def _run(arguments: argparse.Namespace) -> int:
    cases: list[Case] = arguments.cases
    with tempfile.TemporaryDirectory(prefix="plan-", dir=Path.cwd()) as scratch:
        rounds = measure(cases, arguments.repeats, arguments.steps, Path(scratch))
    show(table(rounds), width=110)
    if arguments.json:
        content = {**as_json(rounds), "software": software()}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(cases: list[Case], repeats: int, steps: int, scratch: Path) -> dict[Case, list[Round]]:
    """All cases, in turn, ``repeats`` times: what slows the machine for a while then slows all of them."""
    found: dict[Case, list[Round]] = {case: [] for case in cases}
    for case in cases:  # a plan knows of the data only once they are there
        _launch(scratch, *case.overrides(steps), "stages=[fetch]", f"hydra.run.dir={scratch}/fetch-{case.name}")
    for number in range(repeats):
        for case in cases:
            directory = scratch / f"{case.name}-{number}"
            latest = one_round(case.overrides(steps), directory)
            found[case].append(latest)
            print(
                f"round {number + 1}  {case.name:<10} step {latest.planned_seconds:.2f} s planned (drift "
                f"{latest.drift:.0%}), {latest.measured_seconds:.2f} s measured: {latest.time_ratio:.2f}",
                flush=True,
            )
    return found


def one_round(overrides: tuple[str, ...], directory: Path) -> Round:
    """Plan, run, plan."""
    before = planned(directory.parent, overrides)
    result = trained(directory, overrides)
    after = planned(directory.parent, overrides)
    return Round(
        before["duration"]["step_seconds"],
        after["duration"]["step_seconds"],
        result["step_seconds_p50"],
        before["memory_bytes"]["total"],
        result["peak_memory_bytes"],
    )


def planned(cwd: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The plan as JSON. Raises TrntuneError for one without a time."""
    done = _launch(cwd, *overrides, "plan=true", "plan.format=json")
    plan: dict[str, Any] = json.loads(done.stdout)
    if plan["duration"] is None:
        raise TrntuneError(f"the plan has no time: {_last_words(done)}")
    return plan


def trained(directory: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The result of the training stage."""
    _launch(directory.parent, *overrides, f"hydra.run.dir={directory}")
    result: dict[str, Any] = json.loads((directory / "stages" / "train.json").read_text(encoding="utf-8"))
    return result


def _launch(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise TrntuneError(f"launch.py failed: {_last_words(done)}")
    return done


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    return redact(" ".join(done.stderr.split()[-40:]))


def table(rounds: dict[Case, list[Round]]) -> Table:
    """Medians over the rounds, and the ratios planned / measured with their range."""
    shown = Table(title="planned / measured")
    for column in ("", "step, s", "measured", "x", "range", "drift", "memory, GB", "measured", "x"):
        shown.add_column(column, justify="right" if column else "left")
    for case, found in rounds.items():
        ratios = [each.time_ratio for each in found]
        shown.add_row(
            case.name,
            f"{_median(found, 'planned_seconds'):.2f}",
            f"{_median(found, 'measured_seconds'):.2f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"up to {max(each.drift for each in found):.0%}",
            f"{_median(found, 'planned_bytes') / 1e9:.2f}",
            f"{_median(found, 'measured_bytes') / 1e9:.2f}",
            f"{_median(found, 'memory_ratio'):.2f}",
        )
    return shown


def as_json(rounds: dict[Case, list[Round]]) -> dict[str, Any]:
    """Median ratios, and every round."""
    return {
        "cases": {
            case.name: {
                "time_ratio": _median(found, "time_ratio"),
                "memory_ratio": _median(found, "memory_ratio"),
                "rounds": [{**asdict(each), "time_ratio": each.time_ratio, "drift": each.drift} for each in found],
            }
            for case, found in rounds.items()
        }
    }


def _median(rounds: list[Round], what: str) -> float:
    return statistics.median(float(getattr(each, what)) for each in rounds)


if __name__ == "__main__":
    sys.exit(main())
