"""`python -m benchmarks.submission --runs 200`: how long a sweep takes to submit, a job, on the Slurm at hand.

Submits held jobs, so that nothing runs, and cancels them. Against it: sbatch itself, for as many empty scripts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launcher.cli import Parser, process_entry
from launcher.errors import TrntuneError, UsageError
from launcher.executors.slurm.ledger import read
from launcher.executors.slurm.states import cancel
from launcher.paths import ROOT


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _run(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.submission", description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=200, help="runs of the sweep; each has two jobs (default: 200)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        raise UsageError(f"--runs {arguments.runs}: at least 1")
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="submission-", dir=Path.cwd()) as scratch:
        sweep, jobs = _submit(Path(scratch), arguments.runs)
        bare = _sbatch(Path(scratch), jobs)
    result = {
        "runs": arguments.runs,
        "jobs": jobs,
        "seconds": sweep,
        "seconds_a_job": sweep / jobs,
        "sbatch_seconds_a_job": bare / jobs,
        "ratio": sweep / bare,
    }
    print(f"{arguments.runs} runs, {jobs} jobs: {sweep:.1f} s to submit, {1000 * sweep / jobs:.0f} ms a job")
    print(f"sbatch alone: {1000 * bare / jobs:.0f} ms a job; ratio {sweep / bare:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _submit(scratch: Path, runs: int) -> tuple[float, int]:
    """Seconds of `launch.py -m`, from start to end, and how many jobs it submitted."""
    command = [
        sys.executable, str(ROOT / "launch.py"), "-m", "experiment=tiny", "tracking=none", "cluster=slurm",
        "cluster.sbatch_args=[--hold]", f"seed=range({runs})", "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    began = time.perf_counter()
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise TrntuneError(f"nothing was submitted: {' '.join(done.stderr.split())}")
    ids = read(scratch / "sweep").ids()
    cancel(ids)
    return seconds, len(ids)


def _sbatch(scratch: Path, jobs: int) -> float:
    """Seconds of that many sbatch calls, one after another."""
    script = scratch / "empty.sh"
    script.write_text("#!/bin/bash\n#SBATCH --hold\n#SBATCH --output=/dev/null\ntrue\n", encoding="utf-8")
    began, ids = time.perf_counter(), []
    for _ in range(jobs):
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=True)
        ids.append(done.stdout.strip().partition(";")[0])
    seconds = time.perf_counter() - began
    cancel(ids)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
