"""What a save costs the training beside it: `python -m benchmarks.checkpoints [--gigabytes 1.6] [--repeats 5]`.

The yardstick is a plain copy of the same tensors in host memory, taken in turn with the saves. While a save is written
the process goes on with matrix products, whose rate is compared with that of quiet seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from trainer.checkpoints.manifest import Manifest, Position, World
from trainer.checkpoints.peers import SingleProcess
from trainer.checkpoints.store import Store
from trainer.checkpoints.writer import Snapshot, Writer
from trainer.engines.state import Tensors, copied

_SIDE = 1024


def state_of(gigabytes: float) -> Tensors:
    """fp32 tensors of this size together, as many as a small model has."""
    count, total = 200, int(gigabytes * 1e9 / 4)
    return {f"layers.{i}": torch.randn(total // count) for i in range(count)}


def snapshot_of(step: int, tensors: Tensors) -> Snapshot:
    """A save of one process."""
    manifest = Manifest(step, 0.0, Position(0, 0), World(1, 1, 1, 1), {}, "", {}, "", {})
    return Snapshot(manifest, {"weights/model.safetensors": tensors}, {})


def products(until: Callable[[], bool]) -> float:
    """Matrix products a second until ``until`` is true."""
    a, b = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    count, start = 0, time.perf_counter()
    while not until():
        torch.mm(a, b)
        count += 1
    return count / (time.perf_counter() - start)


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def one_round(step: int, tensors: Tensors, writer: Writer) -> dict[str, float]:
    """A copy, a save, and products beside it and without it."""
    copy = timed(lambda: {name: tensor.clone() for name, tensor in tensors.items()})
    quiet_end = time.perf_counter() + 2
    quiet = products(lambda: time.perf_counter() >= quiet_end)
    stall = timed(lambda: writer.submit(snapshot_of(step, copied(tensors))))
    beside = products(writer.finished)
    outcome = writer.collect()
    assert outcome is not None
    assert outcome.failure is None, outcome.failure
    return {
        "copy_seconds": copy,
        "stall_seconds": stall,
        "write_seconds": outcome.seconds,
        "stall_to_copy": stall / copy,
        "stall_to_write": stall / outcome.seconds,
        "rate_beside": beside / quiet,
    }


def measure(gigabytes: float, repeats: int, directory: Path) -> list[dict[str, float]]:
    """Rounds after one to warm up."""
    tensors = state_of(gigabytes)
    writer = Writer(Store(directory / "checkpoints"), SingleProcess(), keep=1)
    rounds = [one_round(step, tensors, writer) for step in range(1, repeats + 2)]
    writer.close()
    return rounds[1:]


def show(rounds: list[dict[str, float]], gigabytes: float) -> None:
    """Medians with their range."""
    table = Table(title=f"a save of {gigabytes} GB, {len(rounds)} rounds", title_justify="left")
    for column in ("", "median", "lowest", "highest"):
        table.add_column(column)
    for key in rounds[0]:
        values = [each[key] for each in rounds]
        table.add_row(key, *(f"{f(values):.3f}" for f in (statistics.median, min, max)))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints")
    parser.add_argument("--gigabytes", type=float, default=1.6, help="1.6: SmolLM2-135M in full with AdamW's moments")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the rounds to")
    parser.add_argument("--directory", type=Path, help="where to write; default: a temporary directory")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        rounds = measure(arguments.gigabytes, arguments.repeats, directory)
    finally:
        shutil.rmtree(directory)
    show(rounds, arguments.gigabytes)
    if arguments.json:
        arguments.json.write_text(json.dumps(rounds, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
