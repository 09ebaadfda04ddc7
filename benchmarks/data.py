"""`python -m benchmarks.data`: tokenizing and packing JSONL files of several sizes, against the tokenizer alone.

Each size is made anew from the words of Python's docstrings, and prepared in a fresh process with an empty cache, as
the first run on a data set does it: reading, checking, hashing, tokenizing, writing, splitting and packing. Before and
after it the tokenizers library encodes the same texts, which then lie in memory, in batches of the same size, on the
same cores, and does nothing else: the share is its time a token over ours, by the clock and by CPU seconds, which a
machine that does other things disturbs less. Then the same is prepared again, as every later run and every other rank
does it, and rows are read back, from the stored tokens and by tokenizing them again (dataset.streaming).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launcher.cli import Parser, process_entry
from launcher.compose import Composer
from launcher.errors import TrntuneError, UsageError
from launcher.paths import ROOT
from launcher.schema import Config

_BASELINE_ROWS = 20_000
_READ = 200  # packed rows
_LENGTH = 1024


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _run(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.data", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", default="10000,100000,1000000", help="sizes (default: %(default)s)")
    parser.add_argument("--words", type=int, default=40, help="words of a row, on average (default: %(default)s)")
    parser.add_argument("--model", default="smollm2_135m", help="whose tokenizer (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--part", choices=("alone", "prepare", "again", "streaming"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.part:
        print(json.dumps(_part(arguments)))
        return 0
    try:
        sizes = [int(size) for size in arguments.rows.split(",")]
    except ValueError:
        raise UsageError(f"--rows {arguments.rows}: sizes with commas between them, such as 10000,100000") from None
    results = []
    with tempfile.TemporaryDirectory(prefix="data-", dir=Path.cwd()) as scratch:
        for size in sizes:
            results.append(_measure(arguments, size, Path(scratch)))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    Console(highlight=False).print(_table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def _measure(arguments: argparse.Namespace, size: int, scratch: Path) -> dict[str, Any]:
    file = scratch / f"{size}.jsonl"
    write_rows(file, size, arguments.words)
    before = _child(arguments, "alone", file, scratch)
    first = _child(arguments, "prepare", file, scratch)
    after = _child(arguments, "alone", file, scratch)
    again = _child(arguments, "again", file, scratch)
    streaming = _child(arguments, "streaming", file, scratch)
    alone, alone_cpu = ((before[key] + after[key]) / 2 for key in ("seconds_a_token", "cpu_seconds_a_token"))
    result = {
        "rows": size,
        "file_bytes": file.stat().st_size,
        "tokens": first["tokens"],
        "seconds": first["seconds"],
        "rows_per_second": size / first["seconds"],
        "tokens_per_second": first["tokens"] / first["seconds"],
        "tokenizer_tokens_per_second": 1 / alone,
        "tokenizer_spread": abs(before["seconds_a_token"] - after["seconds_a_token"]) / alone,
        "share": alone * first["tokens"] / first["seconds"],
        "cpu_seconds": first["cpu_seconds"],
        "cpu_share": alone_cpu * first["tokens"] / first["cpu_seconds"],
        "peak_rss_bytes": first["peak_rss_bytes"],
        "start_rss_bytes": first["start_rss_bytes"],
        "padding_fraction": first["padding_fraction"],
        "again_seconds": again["seconds"],
        "again_peak_rss_bytes": again["peak_rss_bytes"],
        "read_tokens_per_second": again["read_tokens_per_second"],
        "streaming_read_tokens_per_second": streaming["read_tokens_per_second"],
        "cache_bytes": first["cache_bytes"],
        "streaming_cache_bytes": streaming["cache_bytes"],
    }
    file.unlink()
    return result


def write_rows(file: Path, rows: int, words: int) -> None:
    """Instruction rows of ``words`` words on average, half to one and a half times as long, drawn from docstrings."""
    from trainer.data.python_docs import build_rows

    known = [word for row in build_rows() for word in f"{row.instruction} {row.context} {row.response}".split()]
    draw = random.Random(rows)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            count = draw.randint(words // 2, words + words // 2)
            start = draw.randrange(len(known) - 2 * words)
            text = known[start : start + count]
            row = {"instruction": f"{number}: {' '.join(text[: count // 3])}", "response": " ".join(text[count // 3 :])}
            stream.write(json.dumps(row) + "\n")


def _child(arguments: argparse.Namespace, part: str, file: Path, scratch: Path) -> dict[str, Any]:
    """One part in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.data", "--part", part, "--file", str(file), "--model", arguments.model]
    cache = scratch / ("streaming" if part == "streaming" else "cache")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRNTUNE_BENCHMARK_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise TrntuneError(f"part {part} of {file.name} failed")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _part(arguments: argparse.Namespace) -> dict[str, Any]:
    from trainer.fetch import fetch_model
    from trainer.models.load import load_tokenizer

    streaming = arguments.part == "streaming"
    lines = [
        "dataset=jsonl", f"dataset.path={arguments.file}", f"model={arguments.model}", f"dataset.streaming={streaming}",
        f"training.max_length={_LENGTH}", "accelerator=cpu",
    ]  # fmt: skip
    config = Composer().compose(lines, multirun=False).runs[0].config
    tokenizer = load_tokenizer(fetch_model(config.model))
    # The model's own cache is the user's; what is measured begins with an empty one.
    os.environ["TRNTUNE_CACHE"] = os.environ["TRNTUNE_BENCHMARK_CACHE"]
    return _alone(config, tokenizer) if arguments.part == "alone" else _prepare(config, tokenizer)


def _alone(config: Config, tokenizer: Any) -> dict[str, float]:
    """The library's batch call on texts in memory."""
    from trainer.data.build import BATCH
    from trainer.data.rows import JsonLines
    from trainer.data.tokenize import Encoder

    assert config.dataset.path is not None
    encoder = Encoder(tokenizer, config.dataset.prompt)
    rows = [row for _, row in _first(iter(JsonLines(Path(config.dataset.path), config.dataset.columns, "stop")))]
    batches = [encoder.texts(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
    tokens = 0
    with encoder.ready():
        encoder.start(*batches[0])
        began, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            encoded = encoder.start(*batch)
            tokens += sum(len(each) for part in encoded for each in part)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    tokens += len(rows)  # their EOS, which the preparation adds
    return {"seconds_a_token": seconds / tokens, "cpu_seconds_a_token": cpu / tokens}


def _first(rows: Iterator[Any]) -> Iterator[Any]:
    return (row for _, row in zip(range(_BASELINE_ROWS), rows, strict=False))


def _prepare(config: Config, tokenizer: Any) -> dict[str, Any]:
    """All that the training stage does with its data, and rows read back in the order of training."""
    from trainer.data.prepare import prepare
    from trainer.models import cache

    assert config.dataset.path is not None
    start_rss = _peak_rss()
    began, cpu = time.perf_counter(), time.process_time()
    data = prepare(config, Path(config.dataset.path), tokenizer)
    data.digest()
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


def _table(results: list[dict[str, Any]]) -> Table:
    shown = Table(title=f"Tokenizing and packing to {_LENGTH} tokens, {len(os.sched_getaffinity(0))} CPUs")
    for column in ("", *(f"{result['rows']:,} rows" for result in results)):
        shown.add_column(column, justify="right" if column else "left")
    lines = (
        ("file", "file_bytes", lambda v: f"{v / 1e6:,.1f} MB"),
        ("tokens", "tokens", lambda v: f"{v:,.0f}"),
        ("first time", "seconds", lambda v: f"{v:.2f} s"),
        ("rows/s", "rows_per_second", lambda v: f"{v:,.0f}"),
        ("tokens/s", "tokens_per_second", lambda v: f"{v:,.0f}"),
        ("tokenizer alone, tokens/s", "tokenizer_tokens_per_second", lambda v: f"{v:,.0f}"),
        ("  before and after differ by", "tokenizer_spread", lambda v: f"{v:.0%}"),
        ("share of its speed", "share", lambda v: f"{v:.0%}"),
        ("  of CPU seconds", "cpu_share", lambda v: f"{v:.0%}"),
        ("peak RSS", "peak_rss_bytes", lambda v: f"{v / 1e9:.2f} GB"),
        ("  before the data", "start_rss_bytes", lambda v: f"{v / 1e9:.2f} GB"),
        ("padding", "padding_fraction", lambda v: f"{v:.2%}"),
        ("every later time", "again_seconds", lambda v: f"{v:.2f} s"),
        ("reading, tokens/s", "read_tokens_per_second", lambda v: f"{v:,.0f}"),
        ("  dataset.streaming", "streaming_read_tokens_per_second", lambda v: f"{v:,.0f}"),
        ("cache", "cache_bytes", lambda v: f"{v / 1e6:,.1f} MB"),
        ("  dataset.streaming", "streaming_cache_bytes", lambda v: f"{v / 1e6:,.1f} MB"),
    )  # fmt: skip
    for name, key, form in lines:
        shown.add_row(name, *(form(result[key]) for result in results))
    return shown


if __name__ == "__main__":
    sys.exit(main())
