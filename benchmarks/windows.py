"""`python -m benchmarks.windows`: a model with sliding windows, packed by this project, against plain transformers.

A Mistral of 135 million parameters (the sizes of SmolLM2-135M, a window of 512, random weights), LoRA r16 on q and v in
fp32: forward and backward passes over the same documents in one process, each round one way after the other. Texts
of 200 tokens in the mean (100 to 300) share rows of 1,024; texts of 3,000 tokens have a row each, so that there is no
padding to save, only what lies before the window. The summed losses of all ways must agree. Times are this process's
processor time a real token: with --threads 1 (the default) other work on the machine hardly disturbs it.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from rich.table import Table
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, MistralConfig

from benchmarks.measure import show
from benchmarks.training.workload import packed
from launcher.cli import Parser, process_entry
from launcher.config.schema import LoraConfig
from launcher.errors import TrntuneError, UsageError
from launcher.run_dir.provenance import software
from trainer.data.collate import Collator
from trainer.data.packed import Row
from trainer.data.tokenize import IGNORE, Example
from trainer.fused import fuse
from trainer.models.adapt import peft_config
from trainer.models.attention import DOCUMENT_ATTENTION
from trainer.models.causal_lm import MODEL_INPUTS, CausalLMLoss

_WINDOW = 512
_BATCH = 4
"""samples of a padded batch"""
_TOLERANCE = 1e-3
"""of the summed losses: rounding in fp32"""

Pass = Callable[[], float]
"""runs forward and backward over all documents; returns their summed loss, nats"""


@dataclass(frozen=True)
class Load:
    """The documents of a measurement, and the rows that they are packed into."""

    name: str
    mean: int
    """tokens of a document"""
    spread: int
    """how far lengths go from it, before the documents of a row are made to fill it as a run's do, to 98 %"""
    row: int
    """positions"""
    rows: int

    def lengths(self) -> list[int]:
        """Of the documents, the same every time."""
        draw = random.Random(0)
        found = []
        for _ in range(self.rows):
            drawn = [self.mean + draw.randint(-self.spread, self.spread) for _ in range(self.row // self.mean)]
            found += [length * self.mean * len(drawn) // sum(drawn) for length in drawn]
        return found

    def examples(self, vocabulary: int) -> list[Example]:
        """Random tokens, the first half of each document a prompt; the same every time."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for length in self.lengths():
            ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
            found.append(Example(ids, [IGNORE] * (length // 2) + ids[length // 2 :]))
        return found


LOADS = (Load("200 tokens", 200, 100, 1024, 2), Load("3,000 tokens", 3000, 0, 3072, 1))


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _run(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.windows", description=__doc__, allow_abbrev=False)
    parser.add_argument("--layers", type=int, default=30, help="of the model (default: 30, 135 million parameters)")
    parser.add_argument("--rows", type=int, help="of packed documents (default: 2 of short ones, 1 of a long one)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args(argv)
    if min(arguments.layers, arguments.repeats, arguments.threads, arguments.rows or 1) < 1:
        raise UsageError("--layers, --rows, --repeats and --threads: at least 1")
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(arguments.threads)
    config = mistral(arguments.layers)
    times: dict[str, dict[str, list[float]]] = {}
    for load in LOADS:
        times[load.name] = measured(config, replace(load, rows=arguments.rows or load.rows), arguments.repeats)
    _report(arguments, times)
    return 0


def mistral(layers: int) -> MistralConfig:
    """SmolLM2-135M's sizes with Mistral's layers, at 30 of them."""
    return MistralConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        sliding_window=_WINDOW,
        tie_word_embeddings=True,
    )


def measured(config: MistralConfig, load: Load, repeats: int) -> dict[str, list[float]]:
    """Processor seconds a real token of each way and round. Raises TrntuneError where two ways with the same attention
    give other losses."""
    examples = load.examples(config.vocab_size)
    tokens = sum(len(example.input_ids) for example in examples)
    full = copy.deepcopy(config)
    full.sliding_window = None
    ways = {
        OURS: our_way(config, examples, load.row),
        FULL: our_way(full, examples, load.row),
        LONGEST: plain_way(config, examples, None, _BATCH),
    }
    if load.spread:  # else padding to the row is hardly any
        ways[ROW] = plain_way(config, examples, load.row, 1)
    our_way(config, [_cut(examples[0])], load.row)()  # libraries start with their first products
    times: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, float] = {}
    for number in range(repeats):
        names = list(ways)
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            start = time.process_time()
            losses[name] = ways[name]()
            times[name].append((time.process_time() - start) / tokens)
            print(f"{load.name}, round {number + 1}, {name}: {1000 * times[name][-1]:.2f} ms a token", flush=True)
        _check_same_work(load.name, losses)
    return times


def _cut(example: Example) -> Example:
    return Example(example.input_ids[:64], example.input_ids[:64])


def _check_same_work(load: str, losses: dict[str, float]) -> None:
    for name in sorted({LONGEST, ROW} & set(losses)):
        if not abs(losses[name] - losses[OURS]) <= _TOLERANCE * abs(losses[OURS]):
            raise TrntuneError(f"{load}: the loss is {losses[OURS]:.4f} {OURS}, and {losses[name]:.4f} {name}")


OURS, FULL = "packed", "packed, full attention"
LONGEST, ROW = "transformers, padded to the longest of 4", "transformers, padded to the row"


def adapted(config: MistralConfig, attention: str) -> PeftModel:
    """The model with its adapter, the same weights every time."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    found = get_peft_model(model, peft_config(LoraConfig(name="r16_qv", dropout=0.0)))
    assert isinstance(found, PeftModel)
    return found


def our_way(config: MistralConfig, examples: list[Example], length: int) -> Pass:
    """As the torch engine computes it."""
    model = adapted(config, DOCUMENT_ATTENTION)
    fuse(model)
    module, collator = CausalLMLoss(model), Collator(length, pad_token_id=0)
    rows: list[Row] = packed(examples, length)

    def run() -> float:
        total = 0.0
        for row in rows:
            batch = collator([row])
            loss = module(**{name: batch[name] for name in MODEL_INPUTS})
            loss.backward()
            total += float(loss.detach())
        module.zero_grad(set_to_none=True)
        return total

    return run


def plain_way(config: MistralConfig, examples: list[Example], length: int | None, batch: int) -> Pass:
    """transformers' model with its own attention (sdpa), a sample a row, padded to ``length`` or to the longest."""
    model = adapted(config, "sdpa")
    parts = [examples[start : start + batch] for start in range(0, len(examples), batch)]

    def run() -> float:
        total = 0.0
        for part in parts:
            width = length or max(len(example.input_ids) for example in part)
            ids, labels, mask = (torch.full((len(part), width), value) for value in (0, IGNORE, 0))
            for row, example in enumerate(part):
                size = len(example.input_ids)
                ids[row, :size], labels[row, :size] = torch.tensor(example.input_ids), torch.tensor(example.labels)
                mask[row, :size] = 1
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum")
            loss.backward()
            total += float(loss.detach())
        model.zero_grad(set_to_none=True)
        return total

    return run


def ratios(times: dict[str, list[float]]) -> dict[str, list[float]]:
    """How many times as long each way takes as the packed one, by round."""
    return {name: [mine / ours for mine, ours in zip(found, times[OURS], strict=True)] for name, found in times.items()}


def _report(arguments: argparse.Namespace, times: dict[str, dict[str, list[float]]]) -> None:
    title = f"lora, Mistral of {arguments.layers} layers, window {_WINDOW}, fp32, threads: {arguments.threads}"
    shown = Table(title=f"{title}; {arguments.repeats} rounds")
    for column in ("documents", "way", "ms of processor a token", "times as long", "range over rounds"):
        shown.add_column(column, justify="left" if column in ("documents", "way") else "right")
    for load, found in times.items():
        for name, each in ratios(found).items():
            middle = 1000 * statistics.median(found[name])
            spread = f"{min(each):.2f} to {max(each):.2f}"
            shown.add_row(load, name, f"{middle:.2f}", f"{statistics.median(each):.2f}", spread)
    show(shown, width=120)
    file = arguments.directory / "windows.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": "windows",
        "layers": arguments.layers,
        "threads": arguments.threads,
        "cpu_seconds_a_token": times,
        "ratios": {load: ratios(found) for load, found in times.items()},
        "software": software(),
    }
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"all samples: {file}")


if __name__ == "__main__":
    sys.exit(main())
