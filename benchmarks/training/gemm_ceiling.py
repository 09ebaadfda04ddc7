"""The rate of a model's own matrix products with nothing between them: the ceiling that a framework's share is of."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import Any

from launcher.errors import TrntuneError
from launcher.paths import ROOT


def ceiling(architecture: Any, tokens: int, device: str, precision: str, prefix: str, threads: int) -> float:
    """FLOP/s of products with ``tokens`` rows (trainer.probes.device), in a process of its own behind ``prefix``.

    Raises TrntuneError where that process fails and where there is no such device.
    """
    request = {"shapes": matrix_shapes(architecture), "tokens": tokens, "device": device, "precision": precision}
    command = [*shlex.split(prefix), sys.executable, "-m", "trainer.probes.device", json.dumps(request)]
    done = run(command, threads, ours=True)
    if done.returncode:
        raise TrntuneError(f"the ceiling can't be measured: {reason(done)}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not found:
        raise TrntuneError(f"the ceiling can't be measured: there is no {device} device here")
    return float(found["flops_per_second"])


def run(command: list[str], threads: int, ours: bool) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends. ``ours``: it imports this project; no other finds it."""
    own = {"PYTHONPATH": str(ROOT)} if ours else {}
    variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=ROOT, env={**kept, **own, **variables}, capture_output=True, text=True)


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of what a process complained of."""
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {done.returncode}"


def matrix_shapes(architecture: Any) -> list[list[int]]:
    """[outputs, inputs] of one layer's weights."""
    hidden, wide, size = architecture.hidden_size, architecture.intermediate_size, architecture.head_dim
    attention = [[architecture.heads * size, hidden], *[[architecture.kv_heads * size, hidden]] * 2]
    return [*attention, [hidden, architecture.heads * size], [wide, hidden], [wide, hidden], [hidden, wide]]


def parameters(architecture: Any) -> int:
    """Parameters that are multiplied with: the layers' and the head's."""
    layer = sum(outputs * inputs for outputs, inputs in matrix_shapes(architecture))
    return int(architecture.layers * layer + architecture.vocab_size * architecture.hidden_size)
