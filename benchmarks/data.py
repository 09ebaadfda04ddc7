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
import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import environments
from benchmarks.data_report import report
from launcher.cli import Parser, process_entry
from launcher.config.compose import Composer
from launcher.config.schema import ColumnsConfig, Config
from launcher.errors import TrntuneError, UsageError
from launcher.paths import ROOT
from launcher.run_dir.provenance import software
from trainer.data.rows import InstructionRow

_BASELINE_ROWS = 20_000
_READ = 200  # packed rows
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
    parser.add_argument("--part", choices=("alone", "prepare", "again", "streaming"), help=argparse.SUPPRESS)
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
        print(json.dumps(_part(arguments)))
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
        _write_pairs(file, peers)
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


def _write_pairs(file: Path, pairs: Path) -> None:
    """The same texts as peers take them: prompts written, so that they need not."""
    from trainer.data.json_lines import JsonLines
    from trainer.data.prompts import plain

    with pairs.open("w", encoding="utf-8") as stream:
        for _, row in JsonLines(file, ColumnsConfig(), "stop"):
            assert isinstance(row, InstructionRow)
            prompt, answer = plain(row)
            stream.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")


def _peer(
    arguments: argparse.Namespace, worker: str, environment: str | None, rows: Path, scratch: Path, processes: int
) -> dict[str, Any]:
    """A peer in a process of its own, with an empty cache of its own."""
    from trainer.fetch.stage import fetch_model

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
    command = [python or sys.executable, str(Path(__file__).parent / "workers" / worker), str(file)]
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


def write_rows(file: Path, rows: int, words: int) -> None:
    """Instruction rows of ``words`` words on average, half to one and a half times as long, drawn from docstrings."""
    texts = _texts(rows, words)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            asked, answer = next(texts)
            stream.write(json.dumps({"instruction": f"{number}: {asked}", "response": answer}) + "\n")


def write_chats(file: Path, rows: int, words: int) -> None:
    """Conversations of 1 to 4 such rows."""
    texts, draw = _texts(rows, words), random.Random(-rows)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            said = []
            for asked, answer in itertools.islice(texts, draw.randint(1, 4)):
                said += [{"role": "user", "content": f"{number}: {asked}"}, {"role": "assistant", "content": answer}]
            stream.write(json.dumps({"messages": said}) + "\n")


def _texts(seed: int, words: int) -> Iterator[tuple[str, str]]:
    """Questions and answers without end."""
    from trainer.fetch.python_docs import build_rows

    known = [word for row in build_rows() for word in f"{row.instruction} {row.context} {row.response}".split()]
    draw = random.Random(seed)
    while True:
        count = draw.randint(words // 2, words + words // 2)
        start = draw.randrange(len(known) - 2 * words)
        text = known[start : start + count]
        yield " ".join(text[: count // 3]), " ".join(text[count // 3 :])


def _child(arguments: argparse.Namespace, part: str, file: Path, scratch: Path) -> dict[str, Any]:
    """One part in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.data", "--part", part, "--file", str(file), "--model", arguments.model]
    cache = scratch / ("streaming" if part == "streaming" else "cache")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRNTUNE_BENCHMARK_CACHE": str(cache)}
    return _output(command, environment, f"part {part} of {file.name}")


def _part(arguments: argparse.Namespace) -> dict[str, Any]:
    from trainer.fetch.stage import fetch_model
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


if __name__ == "__main__":
    sys.exit(main())
