"""What a run measures about itself, by one set of definitions (docs/measurement.md)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

# Raised whenever a definition changes: reports refuse to put runs with different ones into one ratio.
DEFINITIONS_VERSION = 3


@dataclass
class Counts:
    """What was consumed, on one replica or summed over all of them."""

    examples: float = 0
    tokens: float = 0
    """real tokens, padding not counted"""
    positions: float = 0
    """positions computed, padding counted"""
    trained: float = 0
    """labels that the loss counts"""
    pairs: float = 0
    """query/key pairs of causal attention inside the documents, and inside the windows: the mean of the layers"""
    loss_sum: float = 0
    """summed negative log-likelihood of the trained labels, nats"""

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @classmethod
    def from_list(cls, values: list[float]) -> Counts:
        return cls(*values)

    def as_list(self) -> list[float]:
        return list(asdict(self).values())


@dataclass(frozen=True)
class Step:
    """One optimizer step: what all replicas consumed in it, and how long it took."""

    counts: Counts
    seconds: float


@dataclass(frozen=True)
class StepReport:
    """One finished optimizer step, the counts summed over all replicas."""

    step: int
    epoch: float
    counts: Counts
    seconds: float
    learning_rate: float
    grad_norm: float | None
    rows: list[int]
    """indices of the training rows, all replicas together, in order"""


@dataclass
class Stopwatch:
    """Seconds of a stage by part. Parts don't nest: time in an inner part is not counted in the outer one."""

    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as ``name``."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def so_far(self) -> dict[str, float]:
        """Seconds by part until now, those of open parts included."""
        self._count()
        return dict(self.seconds)

    def add(self, earlier: dict[str, float]) -> None:
        """Count what an earlier attempt of the same work took, too."""
        for name, seconds in earlier.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count ``seconds`` of part ``source``, or all of it where it has fewer, as part ``target``."""
        self._count()
        moved = min(max(seconds, 0.0), self.seconds.get(source, 0.0))
        if moved:
            self.add({source: -moved, target: moved})

    def last_as(self, target: str, seconds: float) -> None:
        """Count the last ``seconds`` of the part at hand as part ``target``."""
        if self._open:
            self.move(self._open[-1], target, seconds)

    def _count(self) -> None:
        """Count the time since the last change to the innermost open part."""
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


def percentile(values: list[float], percent: float) -> float:
    """The value below which ``percent`` of ``values`` lie, linearly interpolated."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def rates(counts: Counts, seconds: float) -> dict[str, float]:
    """The throughput of a stretch of training."""
    return {
        "samples_per_second": counts.examples / seconds,
        "tokens_per_second": counts.tokens / seconds,
        "tokens_per_second_padded": counts.positions / seconds,
        "tokens_per_second_trained": counts.trained / seconds,
    }


def summarize(steps: list[Step], skip_steps: int, replicas: int) -> dict[str, float | int | None]:
    """Throughput over the measured window: all steps but the first ``skip_steps``. None where nothing was measured."""
    window = steps[skip_steps:]
    seconds = sum(step.seconds for step in window)
    total = sum((step.counts for step in window), Counts())

    measured: dict[str, float] | dict[str, None] = rates(total, seconds) if window else dict.fromkeys(rates(total, 1))
    samples = measured["samples_per_second"]
    durations = [step.seconds for step in window]
    return {
        "measured_steps": len(window),
        "measured_seconds": seconds,
        **measured,
        "samples_per_second_per_replica": None if samples is None else samples / replicas,
        "padding_fraction": 1 - total.tokens / total.positions if window else None,
        "step_seconds_p50": statistics.median(durations) if window else None,
        "step_seconds_p95": percentile(durations, 95) if window else None,
    }


@dataclass(frozen=True)
class ModelSize:
    """What the FLOPs of a step depend on."""

    matmul_params: int
    """parameters without the embedding lookup (a tied embedding is the head's matrix, so it counts), and without the
    experts that a token doesn't go through"""
    adapter_params: int
    """of the adapter's matrices; 0 for full fine-tuning"""
    attention_width: int
    """layers x heads x head size"""
    saved_params: int = 0
    """of linear layers, and an output head, that an adapter trains in full"""
    forward_only_params: int = 0
    """of ``matmul_params``: in decoder layers below the first with anything trained, with a frozen base"""
    forward_only_width: int = 0
    """of ``attention_width``: in those layers"""


def model_flops(size: ModelSize, counts: Counts, frozen_base: bool) -> float:
    """FLOPs needed for ``counts``: 6N a real token, or 4N + 6 x adapter with a frozen base, and attention.

    A product with a [m, n] matrix is 2mn forward, 2mn for the input's gradient, 2mn for the weight's, which a frozen
    base doesn't need but for its layers that are trained in full. Layers below everything that is trained compute
    forward alone. Attention is two products of 2 x width a pair, forward once and backward twice.
    """
    per_token = (4 if frozen_base else 6) * size.matmul_params - 2 * size.forward_only_params
    per_token += 6 * size.adapter_params + 2 * size.saved_params
    width = 12 * size.attention_width - 8 * size.forward_only_width
    return per_token * counts.tokens + width * counts.pairs


def utilization(
    size: ModelSize, steps: list[Step], skip_steps: int, frozen_base: bool, peak_flops: float | None
) -> dict[str, Any]:
    """model_flops_per_second over the measured window, and mfu when the peak of all devices (FLOP/s) is known."""
    window = steps[skip_steps:]
    if not window:
        return {"model_flops_per_second": None, "mfu": None}
    total = sum((step.counts for step in window), Counts())
    achieved = model_flops(size, total, frozen_base) / sum(step.seconds for step in window)
    return {"model_flops_per_second": achieved, "mfu": achieved / peak_flops if peak_flops else None}
