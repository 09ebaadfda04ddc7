"""`python -m benchmarks.consolidation --size 1B`: consolidating an 8-way sharded model against copying its files.

Writes a random checkpoint, then measures in turns, on the same disk: `cp -r` of it, `cp -r` and waiting until the copy
is on the disk, and the consolidation, which always waits. Prints medians, ratios of medians and the peak anonymous
memory of the consolidation (its own; the page cache is not counted).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.consolidate_data import SHAPES, write_checkpoint
from benchmarks.measure import settle

_DESCRIPTION = "Consolidating an 8-way sharded model against copying its files."
_SAMPLE_SECONDS = 0.01


def main(argv: list[str] | None = None) -> int:
    """Process entry."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.consolidation", description=_DESCRIPTION)
    parser.add_argument("--size", choices=[*SHAPES], default="1B")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (default: 3)")
    parser.add_argument("--directory", type=Path, default=Path(), help="where to write; needs 2 x the model's size")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="consolidation-") as work:
        result = measure(Path(work), arguments.size, arguments.rounds)
    print_table(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def measure(work: Path, size: str, rounds: int) -> dict[str, Any]:
    """Times in seconds and memory in bytes, of each round."""
    source, out = work / "checkpoint", work / "out"
    written = write_checkpoint(source, SHAPES[size])
    _wait_for_disk(source)
    seconds: dict[str, list[float]] = {}
    memory: list[int] = []
    ways: dict[str, Callable[[], object]] = {
        "cp": lambda: _copy(source, out),
        "cp and fsync": lambda: _copy(source, out, wait=True),
        "consolidate": lambda: memory.append(_consolidate(source, out)),
    }
    for number in range(rounds):
        # Another order each round: what one leaves for the disk to do must not always hit the same.
        names = [*ways][number % len(ways) :] + [*ways][: number % len(ways)]
        for name in names:
            settle([source])
            begin = time.perf_counter()
            ways[name]()
            seconds.setdefault(name, []).append(time.perf_counter() - begin)
            _wait_for_disk(out)
            shutil.rmtree(out)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "size": size,
        "bytes": written,
        "ranks": 8,
        "seconds": {name: seconds[name] for name in ways},
        "ratio_to_cp": medians["consolidate"] / medians["cp"],
        "ratio_to_cp_and_fsync": medians["consolidate"] / medians["cp and fsync"],
        "peak_anonymous_bytes": max(memory),
    }


def print_table(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['size']} ({result['bytes'] / 1e9:.2f} GB bf16, 8 ranks)")
    for column in ("what", "median s", "range s", "GB/s"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, values in result["seconds"].items():
        median = statistics.median(values)
        spread = f"{min(values):.2f} to {max(values):.2f}"
        table.add_row(name, f"{median:.2f}", spread, f"{result['bytes'] / median / 1e9:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"consolidate / cp: {result['ratio_to_cp']:.2f}, / cp and fsync: {result['ratio_to_cp_and_fsync']:.2f}"
    )
    console.print(f"peak anonymous memory of consolidate: {result['peak_anonymous_bytes'] / 1e9:.2f} GB")


def _copy(source: Path, out: Path, wait: bool = False) -> None:
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    if wait:
        _wait_for_disk(out)


def _wait_for_disk(directory: Path) -> None:
    files = [str(path) for path in directory.rglob("*") if path.is_file()]
    subprocess.run(["xargs", "-0", "sync"], input="\0".join(files), text=True, check=True)


def _consolidate(source: Path, out: Path) -> int:
    """Run the command; returns its peak anonymous memory in bytes, looked at every 10 ms."""
    command = [sys.executable, "-m", "postprocess.consolidate", str(source), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _anonymous_bytes(process.pid))
        time.sleep(_SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"the consolidation ended with exit code {process.returncode}")
    return peak


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
