"""How fast this machine is right now: the matrix products of one model's layers, and memory traffic between them.

`python -m trainer.probes.device '{"shapes": [[576, 576], ...], "tokens": 512, ...}'` prints JSON. The plan starts it as
a process of its own, since it imports torch. {} is the answer of a machine that has no such device.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from trainer.device import is_here
from trainer.device import synchronize as wait_for

_SECONDS_EACH = 0.06
_MIN_TRIES = 3
_LONG_SECONDS = 1.0
_ELEMENTS = 8 << 20


def best_seconds(work: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """The shortest of the runs that fit into the time for one measurement: others disturb, none speed up.

    The first run warms up, unless it is so long that the warming is lost in it: a large model's products take seconds
    each on a CPU, and many times that on a busy one. They are then computed once.
    """
    first = seconds_of(work, synchronize)
    if first >= _LONG_SECONDS:
        return first
    best, count, deadline = float("inf"), 0, time.perf_counter() + _SECONDS_EACH
    while count < _MIN_TRIES or time.perf_counter() < deadline:
        best, count = min(best, seconds_of(work, synchronize)), count + 1
    return best


def seconds_of(work: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """Of one run, by the clock."""
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def probe(shapes: list[list[int]], tokens: int, device: str, precision: str) -> dict[str, float]:
    """Rates of ``x @ W.T`` with x [tokens, inputs] and W of each shape [outputs, inputs], FLOP/s over all of them, and
    of an elementwise product with a fresh result, bytes/s."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    flops = seconds = 0.0

    def synchronize() -> None:
        wait_for(device)

    for outputs, inputs in shapes:
        x, weight = (torch.randn(rows, inputs, dtype=dtype, device=device) for rows in (tokens, outputs))
        flops += 2.0 * tokens * outputs * inputs
        seconds += best_seconds(lambda x=x, weight=weight: x @ weight.T, synchronize)  # type: ignore[misc]
    # Larger than any cache: what training keeps for the backward pass goes to memory.
    a, b = (torch.randn(_ELEMENTS, device=device) for _ in range(2))
    moved = 3.0 * a.nbytes
    return {"flops_per_second": flops / seconds, "bytes_per_second": moved / best_seconds(lambda: a * b, synchronize)}


def main(arguments: list[str]) -> int:
    """Process entry."""
    request: dict[str, Any] = json.loads(arguments[0])
    with torch.inference_mode():
        print(json.dumps(probe(**request) if is_here(request["device"]) else {}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
