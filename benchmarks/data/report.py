"""The tables of benchmarks.data, in Markdown, ready for docs/data.md."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

_OURS = "trntune"
NOT_THE_SAME = (
    "`datasets.map` only tokenizes: no packing, no split, no hash of a row, no file and line for a broken one.",
    "TRL tokenizes row by row, and each prompt twice; it packs within every 1,000 rows, holds nothing out "
    "by content, counts no row that stands in both sets, and names no row that is broken.",
    "Both are given prompts that are written already. Peak RSS has all processes, with pages of mapped files in it.",
)
_LINES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("file", "file_bytes", lambda v: f"{v / 1e6:,.1f} MB"),
    ("tokens", "tokens", lambda v: f"{v:,.0f}"),
    ("first time", "seconds", lambda v: f"{v:.1f} s"),
    ("rows/s", "rows_per_second", lambda v: f"{v:,.0f}"),
    ("tokens/s", "tokens_per_second", lambda v: f"{v:,.0f}"),
    ("tokenizer alone, tokens/s", "tokenizer_tokens_per_second", lambda v: f"{v:,.0f}"),
    ("its runs before and after differ by", "tokenizer_spread", lambda v: f"{v:.0%}"),
    ("share of its speed", "share", lambda v: f"{v:.0%}"),
    ("share by CPU seconds", "cpu_share", lambda v: f"{v:.0%}"),
    ("peak RSS", "peak_rss_bytes", lambda v: f"{v / 1e9:.2f} GB"),
    ("of it before the data (torch, transformers)", "start_rss_bytes", lambda v: f"{v / 1e9:.2f} GB"),
    ("padding", "padding_fraction", lambda v: f"{v:.2%}"),
    ("every later time", "again_seconds", lambda v: f"{v:.1f} s"),
    ("reading, tokens/s", "read_tokens_per_second", lambda v: f"{v:,.0f}"),
    ("reading with `dataset.streaming`", "streaming_read_tokens_per_second", lambda v: f"{v:,.0f}"),
    ("cache", "cache_bytes", lambda v: f"{v / 1e6:,.1f} MB"),
    ("cache with `dataset.streaming`", "streaming_cache_bytes", lambda v: f"{v / 1e6:,.1f} MB"),
)


def report(results: Sequence[dict[str, Any]], length: int) -> str:
    """``results``: of each size the samples of each way. Medians; of memory the largest."""
    own = [[name, *(_told(each, _OURS, key, form) for each in results)] for name, key, form in _LINES]
    names = list(dict.fromkeys(name for each in results for name in each["samples"]))
    peers = [[name, *(_peer(each, name) for each in results)] for name in names]
    head = [f"{each['rows']:,} rows" for each in results]
    title = f"Packed to {length:,} tokens, {len(os.sched_getaffinity(0))} CPUs, medians of {_rounds(results)}."
    tables = [title, "", *_table(["", *head], own)]
    if len(names) > 1:
        tables += ["", "Wall seconds, CPU seconds, peak RSS:", "", *_table(["", *head], peers)]
        tables += ["", *(f"- {line}" for line in NOT_THE_SAME)]
    return "\n".join(tables)


def _rounds(results: Sequence[dict[str, Any]]) -> str:
    counts = [len(each["samples"][_OURS]) for each in results]
    return f"{', '.join(map(str, counts))} rounds" if len(set(counts)) > 1 else f"{counts[0]} rounds"


def _told(result: dict[str, Any], name: str, key: str, form: Callable[[float], str]) -> str:
    found = [each[key] for each in result["samples"].get(name, []) if each[key] is not None]
    return form(max(found) if "rss" in key else statistics.median(found)) if found else ""


def _peer(result: dict[str, Any], name: str) -> str:
    forms: tuple[tuple[str, Callable[[float], str]], ...] = (
        ("seconds", lambda v: f"{v:.1f} s"),
        ("cpu_seconds", lambda v: f"{v:.1f} s"),
        ("peak_rss_bytes", lambda v: f"{v / 1e9:.2f} GB"),
    )
    return ", ".join(filter(None, (_told(result, name, key, form) for key, form in forms)))


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
