"""Commands timed against each other on one machine: interleaved, from a cold page cache, with their memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from launcher.errors import TrntuneError

_INTERVAL = 0.02
# Before each command. A virtual machine gives memory that was freed back to its host after some seconds, and the next
# to touch it pays for taking it again: without a pause, whoever comes first after a large file was removed wins.
_SETTLE_SECONDS = 12.0
_SMALL_BYTES = 100_000_000


@dataclass(frozen=True)
class Sample:
    """One command, once. ``seconds`` until it ended, ``durable_seconds`` until its output was on disk too.

    ``anonymous_bytes``: the largest sum over the command's processes of memory that is not the page cache's.
    """

    seconds: float
    durable_seconds: float
    anonymous_bytes: int


@dataclass
class Case:
    """A command that turns ``inputs`` into the directory ``output``, which is removed before and after each run."""

    name: str
    command: Sequence[str]
    output: Path
    inputs: Sequence[Path]
    samples: list[Sample] = field(default_factory=list)

    def median(self, what: str) -> float:
        return statistics.median(float(getattr(sample, what)) for sample in self.samples)


def run_interleaved(cases: Sequence[Case], repeats: int) -> None:
    """Run every case ``repeats`` times, each round beginning with another one: what slows the machine for a while
    then slows all of them."""
    for number in range(repeats):
        start = number % len(cases)
        for case in [*cases[start:], *cases[:start]]:
            case.samples.append(_measure(case))
            latest = case.samples[-1]
            print(
                f"round {number + 1}  {case.name:<14} {latest.seconds:7.2f} s, durable {latest.durable_seconds:7.2f} s"
            )


def _measure(case: Case) -> Sample:
    shutil.rmtree(case.output, ignore_errors=True)
    os.sync()
    for directory in case.inputs:
        _evict(directory)
    settle(case.inputs)
    began = time.perf_counter()
    with subprocess.Popen(case.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        peak = _watch(process)
        said = process.stderr.read() if process.stderr else ""
    ended = time.perf_counter()
    if process.returncode:
        raise TrntuneError(f"{case.name} failed: {' '.join(said.split()[-40:])}")
    os.sync()
    durable = time.perf_counter()
    shutil.rmtree(case.output)
    return Sample(ended - began, durable - began, peak)


def settle(directories: Sequence[Path]) -> None:
    """Wait until the machine has got over what was measured before, where the inputs are large enough to matter."""
    size = sum(file.stat().st_size for directory in directories for file in directory.rglob("*") if file.is_file())
    if size > _SMALL_BYTES:
        time.sleep(_SETTLE_SECONDS)


def _evict(directory: Path) -> None:
    """Drop a directory's files from the page cache: they are on disk, so nothing is lost."""
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _watch(process: subprocess.Popen[str]) -> int:
    """The largest anonymous memory of a process and its children until it ends, looked at every 20 ms."""
    root, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # ended between two looks
            peak = max(peak, sum(_anonymous(each.pid) for each in [root, *root.children(recursive=True)]))
        time.sleep(_INTERVAL)
    return peak


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def table(title: str, cases: Sequence[Case], reference: Case) -> Table:
    """Medians with their ranges, and the ratios of medians to the reference's."""
    shown = Table(title=title)
    for column in ("", "seconds", "range", "x", "durable, s", "x", "anonymous memory"):
        shown.add_column(column, justify="left" if not column else "right")
    for case in cases:
        seconds = [sample.seconds for sample in case.samples]
        shown.add_row(
            case.name,
            f"{case.median('seconds'):.2f}",
            f"{min(seconds):.2f} to {max(seconds):.2f}",
            f"{case.median('seconds') / reference.median('seconds'):.2f}",
            f"{case.median('durable_seconds'):.2f}",
            f"{case.median('durable_seconds') / reference.median('durable_seconds'):.2f}",
            f"{max(sample.anonymous_bytes for sample in case.samples) / 1e9:.2f} GB",
        )
    return shown


def as_json(cases: Sequence[Case], reference: Case) -> dict[str, Any]:
    """Every sample, medians, and ratios of medians."""
    return {
        case.name: {
            "seconds": case.median("seconds"),
            "ratio": case.median("seconds") / reference.median("seconds"),
            "durable_ratio": case.median("durable_seconds") / reference.median("durable_seconds"),
            "peak_anonymous_bytes": max(sample.anonymous_bytes for sample in case.samples),
            "samples": [asdict(sample) for sample in case.samples],
        }
        for case in cases
    }


def show(shown: Table, width: int | None = None) -> None:
    """Print a table, in the terminal's width or in ``width`` characters."""
    Console(highlight=False, width=width).print(shown)
