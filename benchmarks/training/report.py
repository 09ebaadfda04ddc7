"""From the measured runs of benchmarks.training to medians, ratios and a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.training.gemm_ceiling import parameters
from benchmarks.training.peers import OURS, REFERENCE
from benchmarks.training.workload import TokenFile
from launcher.units import DASH
from trainer.metrics.throughput import percentile


def summary(
    results: Sequence[dict[str, Any]], data: TokenFile, architecture: Any, method: str, threads: int
) -> dict[str, Any]:
    """Medians over the rounds."""
    weight = 4 if method == "lora" else 6
    flops = weight * parameters(architecture) * data.tokens
    rates = [data.tokens / result["seconds"] for result in results]
    steps = [seconds for result in results for seconds in result["step_seconds"]]
    cpu_shares = [flops * threads / r["cpu_seconds"] / r["ceiling_flops_per_second"] for r in results]
    shares = [flops / result["seconds"] / result["ceiling_flops_per_second"] for result in results]
    return {
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_range": [min(rates), max(rates)],
        "samples_per_second": statistics.median(rates) / data.tokens * data.samples,
        "step_seconds_p50": statistics.median(steps),
        "step_seconds_p95": percentile(steps, 95),
        "share_of_ceiling": statistics.median(shares),
        "tokens_per_cpu_second": statistics.median(data.tokens / result["cpu_seconds"] for result in results),
        "share_of_ceiling_by_cpu_time": statistics.median(cpu_shares),
        "peak_rss_bytes": max(result["peak_rss_bytes"] for result in results),
        "mean_loss": statistics.fmean(loss for result in results for loss in result["losses"]),
    }


def comparison_table(summaries: dict[str, dict[str, Any]], title: str) -> Table:
    """Medians, and how many times as fast as each this project is.

    Ratios and shares stand there twice: by the clock, and by processor time, which other work on the machine disturbs
    less (with several threads it holds their waiting for each other too).
    """
    shown = Table(title=title)
    columns = (
        "", "real tokens/s", "range", "trntune is", "by CPU s", "samples/s", "step p50, p95", "ceiling", "by CPU s",
        "peak RSS",
    )  # fmt: skip
    for column in columns:
        shown.add_column(column, justify="left" if not column else "right")
    ours = summaries.get(OURS)
    reference = summaries.get(REFERENCE)
    for name, each in summaries.items():
        low, high = each["tokens_per_second_range"]
        memory = f"{each['peak_rss_bytes'] / 1e9:.2f} GB"
        if reference:
            memory += f", {each['peak_rss_bytes'] / reference['peak_rss_bytes']:.0%}"
        shown.add_row(
            name,
            f"{each['tokens_per_second']:.1f}",
            f"{low:.0f} to {high:.0f}",
            _times(ours, each, "tokens_per_second"),
            _times(ours, each, "tokens_per_cpu_second"),
            f"{each['samples_per_second']:.2f}",
            f"{each['step_seconds_p50']:.1f}, {each['step_seconds_p95']:.1f} s",
            f"{each['share_of_ceiling']:.0%}",
            f"{each['share_of_ceiling_by_cpu_time']:.0%}",
            memory,
        )
    return shown


def _times(ours: dict[str, Any] | None, other: dict[str, Any], what: str) -> str:
    return DASH if ours is None else f"{ours[what] / other[what]:.2f} x"
