"""The definitions of docs/measurement.md, on numbers done by hand."""

from __future__ import annotations

import pytest

from trainer.metrics import throughput
from trainer.metrics.throughput import (
    Counts,
    ModelSize,
    Step,
    Stopwatch,
    model_flops,
    percentile,
    summarize,
    utilization,
)


def steps() -> list[Step]:
    slow = Step(Counts(examples=100, tokens=100, positions=100, trained=100), seconds=50.0)  # compilation
    usual = [Step(Counts(examples=6, tokens=300, positions=400, trained=100, pairs=1000), s) for s in (1.0, 2.0, 3.0)]
    return [slow, *usual]


def test_the_measured_window_leaves_the_first_steps_out_and_counts_samples_not_rows():
    result = summarize(steps(), skip_steps=1, replicas=2)
    assert result["measured_steps"] == 3
    assert result["measured_seconds"] == 6
    assert result["samples_per_second"] == 3
    assert result["samples_per_second_per_replica"] == 1.5
    assert result["tokens_per_second"] == 150
    assert result["tokens_per_second_padded"] == 200
    assert result["tokens_per_second_trained"] == 50
    assert result["padding_fraction"] == pytest.approx(0.25)
    assert result["step_seconds_p50"] == 2
    assert result["step_seconds_p95"] == pytest.approx(2.9)


def test_nothing_measured_is_null_and_not_zero():
    result = summarize(steps()[:1], skip_steps=1, replicas=1)
    assert result["samples_per_second"] is None
    assert result["padding_fraction"] is None
    assert result["step_seconds_p50"] is None


def test_flops_of_the_published_runs():
    """Llama 3 8B: 6N a token in full, 4N with a frozen base (its adapter adds 6 x 6,815,744)."""
    size = ModelSize(matmul_params=7_504_924_672, adapter_params=0, attention_width=0)
    assert model_flops(size, Counts(tokens=1), frozen_base=False) == 6 * 7_504_924_672
    adapted = ModelSize(7_504_924_672, 6_815_744, 0)
    assert model_flops(adapted, Counts(tokens=1), frozen_base=True) == 4 * 7_504_924_672 + 6 * 6_815_744


def test_attention_counts_pairs_inside_documents():
    size = ModelSize(matmul_params=0, adapter_params=0, attention_width=8)
    assert model_flops(size, Counts(tokens=5, pairs=10), frozen_base=True) == 12 * 8 * 10


def test_utilization_needs_a_configured_peak():
    size = ModelSize(100, 0, 0)
    assert utilization(size, steps(), 1, frozen_base=False, peak_flops=None)["mfu"] is None
    result = utilization(size, steps(), 1, frozen_base=False, peak_flops=600 * 900 / 6 * 2)
    assert result["model_flops_per_second"] == 600 * 900 / 6
    assert result["mfu"] == pytest.approx(0.5)


def test_percentile_interpolates():
    assert percentile([1, 2, 3, 4, 5], 50) == 3
    assert percentile([10.0], 95) == 10
    assert percentile([0, 10], 95) == pytest.approx(9.5)


class Clock:
    """Stands still but for what it is told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def perf_counter(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def test_inner_parts_are_not_counted_twice(clock):
    stopwatch = Stopwatch()
    with stopwatch.part("train"):
        clock.sleep(2)
        with stopwatch.part("eval"):
            clock.sleep(5)
    assert stopwatch.seconds == {"train": 2, "eval": 5}


def test_an_open_part_counts_until_now_and_earlier_attempts_are_added(clock):
    stopwatch = Stopwatch()
    with stopwatch.part("train"):
        clock.sleep(3)
        with stopwatch.part("save"):
            clock.sleep(2)
            so_far = stopwatch.so_far()
        clock.sleep(1)
    assert so_far == {"train": 3, "save": 2}
    assert stopwatch.seconds == {"train": 4, "save": 2}
    stopwatch.add({"train": 100.0, "load": 7.0})
    assert stopwatch.seconds == {"train": 104, "save": 2, "load": 7}
