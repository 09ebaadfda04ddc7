"""What every worker does: read the job, time the optimizer steps, write the result. Standard library only."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any


class Meter:
    """Wall time of each optimizer step, and wall and processor time of all of them."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.losses: list[float] = []
        self.begin()

    def begin(self) -> None:
        self.last = self.first = time.perf_counter()
        self.first_cpu = time.process_time()

    def step(self) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.last)
        self.last = now

    def result(self) -> dict[str, Any]:
        return {
            "seconds": self.last - self.first,
            "cpu_seconds": time.process_time() - self.first_cpu,
            "step_seconds": self.steps,
            "losses": self.losses,
        }


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def examples(job: dict[str, Any]) -> list[dict[str, list[int]]]:
    """The tokenized rows: input_ids, and labels with -100 where the loss doesn't count."""
    return [json.loads(line) for line in Path(job["tokens"]).read_text(encoding="utf-8").splitlines()]


def run(work: Callable[[dict[str, Any], Meter], None], packages: tuple[str, ...]) -> None:
    """Do the job that the command line names; its result is beside it."""
    job_file = Path(sys.argv[1])
    job = json.loads(job_file.read_text(encoding="utf-8"))
    # Before torch is imported: both read it once.
    os.environ.update(OMP_NUM_THREADS=str(job["threads"]), TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    meter = Meter()
    work(job, meter)
    result = {**meter.result(), "peak_rss_bytes": peak_rss(), "device_bytes": _device_bytes()}
    result["packages"] = {name: metadata.version(name) for name in packages}
    job_file.with_suffix(".result.json").write_text(json.dumps(result), encoding="utf-8")


def _device_bytes() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
