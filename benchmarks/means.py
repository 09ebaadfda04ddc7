"""`python -m benchmarks.means`: what each means of the torch engine is worth by itself.

Forward and backward passes over the same packed rows in one process, each round with everything on and then with one
means off at a time. Times are this process's processor time a real token: with --threads 1 (the default) other work on
the machine hardly disturbs it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.table import Table

from benchmarks.measure import show
from benchmarks.training.peers import trntune_overrides
from benchmarks.training.workload import packed
from launcher.cli import Parser, parse, process_entry
from launcher.config.compose import compose
from launcher.config.schema import ColumnsConfig, Config
from launcher.errors import UsageError
from launcher.run_dir.provenance import software
from trainer.data.json_lines import read_jsonl
from trainer.data.packed import Row
from trainer.data.tokenize import tokenize
from trainer.engines.base import create_engine
from trainer.fetch.sources import fetch_dataset, fetch_model
from trainer.models.causal_lm import MODEL_INPUTS
from trainer.models.load import load_tokenizer

COMPILED = "(layers compiled)"
Off = Callable[[], AbstractContextManager[Any]]


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _run(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.means", description=__doc__, allow_abbrev=False)
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--model", default="smollm2_135m", help="a choice of the group model")
    parser.add_argument("--data", type=Path, help="JSONL: instruction, context, response (default: python_docs)")
    parser.add_argument("--rows", type=int, default=2, help="of 1,024 tokens (default: 2)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="and training.compile=layers in place of fused layers")
    parser.add_argument("--directory", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args(argv)
    if min(arguments.rows, arguments.repeats, arguments.threads) < 1:
        raise UsageError("--rows, --repeats and --threads: at least 1")
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(arguments.threads)
    engine, packed, padded = _prepared(arguments)
    times: dict[str, list[float]] = {}
    _pass(engine, packed[:1])
    if arguments.compile:
        compiled, _, _ = _prepared(arguments, "training.compile=layers")
        began = time.perf_counter()
        _pass(compiled, packed[:1])
        print(f"the first pass of compiled layers: {time.perf_counter() - began:.1f} s")
    for _ in range(arguments.repeats):
        if arguments.compile:
            times.setdefault(COMPILED, []).append(_pass(compiled, packed))
        for name, off in {"everything": nullcontext, **_means(engine)}.items():
            with off():
                times.setdefault(name, []).append(_pass(engine, packed))
        times.setdefault("packing", []).append(_pass(engine, padded))
    _report(arguments, times)
    return 0


def _prepared(arguments: argparse.Namespace, *more: str) -> tuple[Any, list[Row], list[Row]]:
    """Engine, packed rows, and the first documents of these one a row (fewer of them: they cost the same each)."""
    overrides = [*trntune_overrides(arguments.method, "fp32", "cpu", arguments.model, 0), *more]
    config = compose(parse(overrides)).runs[0].config
    assert isinstance(config, Config)
    model_dir = fetch_model(config.model)
    tokenizer = load_tokenizer(model_dir)
    rows, _ = read_jsonl(arguments.data or fetch_dataset(config.dataset), ColumnsConfig(), "stop")
    length = config.training.max_length
    examples = tokenize(rows[: 40 * arguments.rows], "plain", "response", length, tokenizer).examples
    rows_of_run = packed(examples, length)
    # From the middle: best fit puts the longest documents into the first rows.
    middle = max(0, len(rows_of_run) // 2 - arguments.rows // 2)
    measured = rows_of_run[middle : middle + arguments.rows]
    engine: Any = create_engine(config)
    engine.load(model_dir, tokenizer)
    engine.replica.module.train()
    return engine, measured, [[example] for example in measured[0]][:2]


def _means(engine: Any) -> dict[str, Off]:
    """Each means by name, and how to train without it."""
    found: dict[str, Off] = {
        "attention in blocks": lambda: mock.patch("trainer.models.attention.is_plain", return_value=False),
        "RMSNorm as one node": lambda: mock.patch("trainer.fused.norm.is_plain", return_value=False),
        "loss in chunks, where labels count": lambda: _dense_loss(engine),
    }
    if engine.config.method.name == "lora":
        found["LoRA as one node"] = lambda: mock.patch("trainer.fused.lora.is_plain", return_value=False)
    return found


@contextmanager
def _dense_loss(engine: Any) -> Iterator[None]:
    engine.replica.module.plain_head = False
    try:
        yield
    finally:
        engine.replica.module.plain_head = True


def _pass(engine: Any, rows: list[Row]) -> float:
    """Processor seconds a real token of a forward and a backward pass over each row."""
    tokens = sum(len(example.input_ids) for row in rows for example in row)
    batches = [engine.replica.collator([row]) for row in rows]
    start = time.process_time()
    for batch in batches:
        (engine.replica.module(**{name: batch[name] for name in MODEL_INPUTS}) / tokens).backward()
        engine.replica.module.zero_grad(set_to_none=True)
    return (time.process_time() - start) / tokens


def _report(arguments: argparse.Namespace, times: dict[str, list[float]]) -> None:
    all_on = times["everything"]
    rounds, threads = arguments.repeats, arguments.threads
    shown = Table(title=f"{arguments.method}, {arguments.model}: {rounds} rounds, threads: {threads}")
    for column in ("without", "ms of processor a token", "times as long", "range over rounds"):
        shown.add_column(column, justify="left" if column == "without" else "right")
    for name, found in times.items():
        ratios = [mine / base for mine, base in zip(found, all_on, strict=True)]
        row = (1000 * statistics.median(found), statistics.median(ratios), min(ratios), max(ratios))
        label = "(everything on)" if name == "everything" else name
        shown.add_row(label, f"{row[0]:.2f}", f"{row[1]:.2f}", f"{row[2]:.2f} to {row[3]:.2f}")
    show(shown)
    file = arguments.directory / f"means_{arguments.method}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"cpu_seconds_a_token": times, "threads": arguments.threads, "software": software()}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"all samples: {file}")


if __name__ == "__main__":
    sys.exit(main())
