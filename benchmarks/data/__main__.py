"""`python -m benchmarks.data`: tokenizing and packing JSONL files of several sizes, against the tokenizer alone.

Each size is made anew from the words of Python's docstrings, and prepared in a fresh process with an empty cache, as
the first run on a data set does it: reading, checking, hashing, tokenizing, writing, splitting and packing. Before and
after it the tokenizers library encodes the same texts, which then lie in memory, in batches of the same size, on the
same cores, and does nothing else: the share is its time a token over ours, by the clock and by CPU seconds, which a
machine that does other things disturbs less. Then the same is prepared again, as every later run and every other rank
does it, and rows are read back, from the stored tokens and by tokenizing them again (dataset.streaming).

Beside it, in rounds that begin with another one each time, `datasets.map` over batches, and TRL's own preparation in an
environment of its own (made once, under --directory), for the same texts and the same limit. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks import environments
from benchmarks.data.parts import PARTS, measure_part
from benchmarks.data.report import report
from benchmarks.data.rows import write_chats, write_pairs, write_rows
from launcher.cli import Parser, process_entry
from launcher.config.compose import Composer
from launcher.errors import TrntuneError, UsageError
from launcher.paths import ROOT
from launcher.run_dir.provenance import software

_LENGTH = 1024
_OFTEN = 100_000
"""Sizes up to it are measured more than once."""


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _run(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.data", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", default="10000,100000,1000000", help="sizes (default: %(default)s)")
    parser.add_argument("--words", type=int, default=40, help="words of a row, on average (default: %(default)s)")
    parser.add_argument("--model", default="smollm2_135m", help="whose tokenizer (default: %(default)s)")
    parser.add_argument(
        "--chats", action="store_true", help="conversations of 1 to 4 answers of so many words, no peers"
    )
    parser.add_argument("--repeats", type=int, default=2, help="of sizes up to 100,000; others once (default: 2)")
    parser.add_argument(
        "--map-at", default="10000,100000,1000000", help="sizes for datasets.map (default: %(default)s)"
    )
    parser.add_argument("--trl-at", default="10000,100000", help="sizes for TRL (default: %(default)s)")
    parser.add_argument(
        "--directory", type=Path, default=Path("outputs/benchmarks"), help="of environments and numbers"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name in ("rows", "map_at", "trl_at"):
        setattr(arguments, name, _sizes(name, getattr(arguments, name)))
    if min(arguments.repeats, arguments.words - 3) < 1:
        raise UsageError("--repeats: at least 1; --words: at least 4")
    return arguments


def _sizes(name: str, text: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",") if size]
    except ValueError:
        sizes = [0]
    if any(size < 1 for size in sizes):
        raise UsageError(f"--{name.replace('_', '-')} {text}: sizes with commas between them, such as 10000,100000")
    return sizes


def _run(arguments: argparse.Namespace) -> int:
    if arguments.part:
        print(json.dumps(measure_part(arguments.part, arguments.file, arguments.model, _LENGTH)))
        return 0
    arguments.directory.mkdir(parents=True, exist_ok=True)
    file = arguments.directory / f"data_{'chats' if arguments.chats else 'instructions'}.json"
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="data-", dir=arguments.directory.resolve()) as scratch:
        for size in arguments.rows:
            results.append(_measured(arguments, size, Path(scratch)))
            content = {"benchmark": "data", "words": arguments.words, "sizes": results, "software": software()}
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(report(results, _LENGTH))
    print(f"all samples: {file}")
    return 0


def _measured(arguments: argparse.Namespace, size: int, scratch: Path) -> dict[str, Any]:
    """All rounds of one size: the samples of each way."""
    file = scratch / f"{size}.jsonl"
    (write_chats if arguments.chats else write_rows)(file, size, arguments.words)
    ways: dict[str, Callable[[], dict[str, Any]]] = {"trntune": lambda: _measure(arguments, size, file, scratch)}
    if not arguments.chats and size in {*arguments.map_at, *arguments.trl_at}:
        peers = scratch / f"{size}-peers.jsonl"
        write_pairs(file, peers)
        if size in arguments.map_at:
            ways["datasets.map"] = functools.partial(_peer, arguments, "datasets_map.py", None, peers, scratch, 1)
        for processes in (1, len(os.sched_getaffinity(0))) if size in arguments.trl_at else ():
            ways[f"TRL, num_proc={processes}"] = functools.partial(
                _peer, arguments, "trl_prepare.py", "trl", peers, scratch, processes
            )
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(arguments.repeats if size <= _OFTEN else 1):
        start = number % len(ways)
        for name in [*list(ways)[start:], *list(ways)[:start]]:
            samples[name].append(ways[name]())
            print(f"{size:,} rows, round {number + 1}: {name}: {samples[name][-1]['seconds']:.1f} s", flush=True)
    file.unlink()
    return {"rows": size, "samples": samples}


def _peer(
    arguments: argparse.Namespace, worker: str, environment: str | None, rows: Path, scratch: Path, processes: int
) -> dict[str, Any]:
    """A peer in a process of its own, with an empty cache of its own."""
    from trainer.fetch.sources import fetch_model

    python = environments.python_of(environment, arguments.directory.resolve() / "peers") if environment else None
    cache = scratch / "peer"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    config = Composer().compose([f"model={arguments.model}", "accelerator=cpu"], multirun=False).runs[0].config
    job = {"model": str(fetch_model(config.model)), "rows": str(rows), "cache": str(cache), "max_length": _LENGTH}
    file = cache / "job.json"
    file.write_text(json.dumps({**job, "processes": processes if processes > 1 else None}), encoding="utf-8")
    own = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_CACHE": str(cache)}
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python or sys.executable, str(Path(__file__).parents[1] / "workers" / worker), str(file)]
    found = _output(command, {**variables, **own}, f"{worker} of {rows.name}")
    shutil.rmtree(cache)
    return found


def _output(command: list[str], variables: dict[str, str], what: str) -> dict[str, Any]:
    """What a process prints last, with the peak memory of it and its children, looked at twice a second."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, text=True)
        root, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # ended between two looks
                peak = max(peak, sum(each.memory_info().rss for each in [root, *root.children(recursive=True)]))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        if process.returncode:
            raise TrntuneError(f"{what} failed")
        output.seek(0)
        found: dict[str, Any] = json.loads(output.read().splitlines()[-1])
    # Its own peak is exact; that of several is seen only now and then.
    return {**found, "peak_rss_bytes": max(peak, found.get("peak_rss_bytes", 0))}


def _measure(arguments: argparse.Namespace, size: int, file: Path, scratch: Path) -> dict[str, Any]:
    """This project, between two measurements of the tokenizer alone."""
    for name in ("cache", "streaming"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    before = _child(arguments, "alone", file, scratch)
    first = _child(arguments, "prepare", file, scratch)
    after = _child(arguments, "alone", file, scratch)
    again = _child(arguments, "again", file, scratch)
    # Of the largest, reading and tokenizing once more would say the same for minutes.
    streaming = _child(arguments, "streaming", file, scratch) if size <= _OFTEN else {}
    alone, alone_cpu = ((before[key] + after[key]) / 2 for key in ("seconds_a_token", "cpu_seconds_a_token"))
    return {
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
        "streaming_read_tokens_per_second": streaming.get("read_tokens_per_second"),
        "cache_bytes": first["cache_bytes"],
        "streaming_cache_bytes": streaming.get("cache_bytes"),
    }


def _child(arguments: argparse.Namespace, part: str, file: Path, scratch: Path) -> dict[str, Any]:
    """One part in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.data", "--part", part, "--file", str(file), "--model", arguments.model]
    cache = scratch / ("streaming" if part == "streaming" else "cache")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRNTUNE_BENCHMARK_CACHE": str(cache)}
    return _output(command, environment, f"part {part} of {file.name}")


if __name__ == "__main__":
    sys.exit(main())
