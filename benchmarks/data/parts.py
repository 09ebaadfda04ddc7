"""What is measured in a process of its own: the tokenizer alone, and this project's preparation."""

from __future__ import annotations

import functools
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.config.compose import Composer
from launcher.config.schema import Config

PARTS = ("alone", "prepare", "again", "streaming")
_BASELINE_ROWS = 20_000
_READ = 200  # packed rows


def measure_part(part: str, file: Path, model: str, length: int) -> dict[str, Any]:
    """One of PARTS in this process, which does nothing else: rows of ``file``, packed to ``length`` tokens.

    Its cache is TRNTUNE_BENCHMARK_CACHE. Seconds, bytes, and counts of tokens by name.
    """
    from trainer.fetch.sources import fetch_model
    from trainer.models.load import load_tokenizer

    streaming = part == "streaming"
    lines = [
        "dataset=jsonl", f"dataset.path={file}", f"model={model}", f"dataset.streaming={streaming}",
        f"training.max_length={length}", "accelerator=cpu",
    ]  # fmt: skip
    config = Composer().compose(lines, multirun=False).runs[0].config
    tokenizer = load_tokenizer(fetch_model(config.model))
    # The model's own cache is the user's; what is measured begins with an empty one.
    os.environ["TRNTUNE_CACHE"] = os.environ["TRNTUNE_BENCHMARK_CACHE"]
    return _alone(config, tokenizer) if part == "alone" else _prepare(config, tokenizer)


def _alone(config: Config, tokenizer: Any) -> dict[str, float]:
    """The library's batch call on texts in memory."""
    from trainer.data.build import BATCH
    from trainer.data.source import Source

    assert config.dataset.path is not None
    source = Source.of(config, Path(config.dataset.path))
    encoder = source.encoder(tokenizer)
    rows = [row for _, row in _first(iter(source.lines()))]
    batches = [encoder.texts(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
    chats = source.found.conversational
    tokens = 0
    with encoder.ready():
        backend = tokenizer.backend_tokenizer
        # A conversation is one text to the library.
        texts = [[each.text for each in batch[0]] for batch in batches] if chats else []
        calls = [functools.partial(encoder.start, *batch) for batch in batches]
        if chats:
            calls = [lambda t=t: (backend.encode_batch_fast(t, add_special_tokens=False),) for t in texts]  # type: ignore[misc]
        calls[0]()
        began, cpu = time.perf_counter(), time.process_time()
        for call in calls:
            tokens += sum(len(each) for part in call() for each in part)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    tokens += 0 if chats else len(rows)  # their EOS, which the preparation adds
    return {"seconds_a_token": seconds / tokens, "cpu_seconds_a_token": cpu / tokens}


def _first(rows: Iterator[Any]) -> Iterator[Any]:
    return (row for _, row in zip(range(_BASELINE_ROWS), rows, strict=False))


def _prepare(config: Config, tokenizer: Any) -> dict[str, Any]:
    """All that the training stage does with its data, and rows read back in the order of training."""
    from trainer.data.prepare import prepare
    from trainer.fetch import cache

    assert config.dataset.path is not None
    start_rss = _peak_rss()
    began, cpu = time.perf_counter(), time.process_time()
    data = prepare(config, Path(config.dataset.path), tokenizer)
    data.digests()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = _peak_rss()
    held = data.eval.sums().tokens
    began = time.perf_counter()
    read = sum(len(example.input_ids) for row in data.train[:_READ] for example in row)
    read_seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "tokens": data.report.train_tokens + held,
        "padding_fraction": data.report.padding_fraction,
        "start_rss_bytes": start_rss,
        "peak_rss_bytes": peak,
        "read_tokens_per_second": read / read_seconds,
        "cache_bytes": sum(file.stat().st_size for file in cache.root().rglob("*.bin")),
    }


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
