"""The rows of the comparison: which number of a run, and its name and unit for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from postprocess.compare.curves import Budget, common_step, equal_budget, loss_at_budget, loss_at_step
from postprocess.compare.runs import Run, is_number

PARTS = {
    "load_seconds": "load",
    "data_seconds": "data",
    "compile_seconds": "compile",
    "train_seconds": "train",
    "eval_seconds": "eval",
    "sample_seconds": "sample",
    "save_seconds": "save",
}
EQUAL_STEPS, EQUAL_COST = "eval_loss_at_equal_steps", "eval_loss_at_equal_cost"


@dataclass(frozen=True)
class Metric:
    """One row."""

    key: str
    """its name in train.json, or EQUAL_STEPS or EQUAL_COST"""
    label: str
    kind: str
    """count, share, rate, seconds, step_seconds, bytes, usd or loss; postprocess.compare.view knows how to write it"""


@dataclass(frozen=True)
class Equal:
    """Where the losses of a group are compared."""

    step: int | None
    budget: Budget | None


METRICS = (
    Metric("trainable_params", "trainable parameters", "count"),
    Metric("trainable_fraction", "share of total parameters", "share"),
    Metric("samples_per_second", "samples/s, all replicas", "rate"),
    Metric("samples_per_second_per_replica", "samples/s, per replica", "rate"),
    Metric("tokens_per_second", "real tokens/s", "rate"),
    Metric("tokens_per_second_padded", "padded tokens/s", "rate"),
    Metric("padding_fraction", "padding", "share"),
    Metric("step_seconds_p50", "step p50", "step_seconds"),
    Metric("step_seconds_p95", "step p95", "step_seconds"),
    Metric("wall_seconds", "wall time", "seconds"),
    *(Metric(key, f"  {name}", "seconds") for key, name in PARTS.items()),
    Metric("peak_memory_bytes", "peak memory, host", "bytes"),
    Metric("peak_device_memory_bytes", "peak memory, device", "bytes"),
    Metric("mfu", "MFU", "share"),
    Metric("cost_usd", "cost", "usd"),
    Metric("eval_loss_before", "held-out loss before", "loss"),
    Metric("eval_loss_after", "held-out loss after", "loss"),
    Metric(EQUAL_STEPS, "held-out loss at equal steps", "loss"),
    Metric(EQUAL_COST, "held-out loss at equal cost", "loss"),
)

# Less is saved, more is gained. A gain in throughput of 70 % is 41 % less time: the two are never exchanged.
SAVINGS = (
    ("train_seconds", "training time saved"),
    ("wall_seconds", "wall time saved"),
    ("cost_usd", "cost saved"),
    ("peak_memory_bytes", "host memory saved"),
    ("peak_device_memory_bytes", "device memory saved"),
)
GAINS = (
    ("samples_per_second", "throughput gained, samples/s"),
    ("tokens_per_second", "throughput gained, real tokens/s"),
)


def equal_of(runs: Sequence[Run]) -> Equal:
    """The step and the budget at which all ``runs`` can be compared without extrapolation."""
    return Equal(common_step(runs), equal_budget(runs))


def value(run: Run, key: str, equal: Equal) -> float | None:
    """A run's number, None when it was not measured. A part of the wall time that never began is not measured."""
    if key == EQUAL_STEPS:
        return loss_at_step(run, equal.step)
    if key == EQUAL_COST:
        return loss_at_budget(run, equal.budget)
    found = run.train.get(key)
    if not is_number(found) or (key in PARTS and found == 0):
        return None
    return found
