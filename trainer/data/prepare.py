"""From a JSONL file to the rows that the model sees, shared by all engines."""

from __future__ import annotations

import hashlib
import random
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.schema import ColumnsConfig, Config
from trainer.data.packing import pack
from trainer.data.rows import InstructionRow, read_jsonl, split
from trainer.data.tokenize import Example, tokenize

# The documents of one fixed row of max_length positions; an empty list is a row of padding.
Row = list[Example]


@dataclass(frozen=True)
class DataReport:
    """What became of the data."""

    sha256: str
    """of the data set's file: runs are only comparable on the same rows"""
    rows_read: int
    rows_skipped: int
    """broken rows left out (dataset.on_bad_row=skip)"""
    train_examples: int
    eval_examples: int
    truncated: int
    """examples that lost their end at training.max_length"""
    dropped: int
    """examples whose prompt alone fills training.max_length"""
    train_rows: int
    train_tokens: int
    padding_fraction: float
    """of the positions of an epoch"""


@dataclass(frozen=True)
class PreparedData:
    """Training rows (whole global batches), evaluation rows, the held-out questions, and the report."""

    train: list[Row]
    eval: list[Row]
    held_out: list[InstructionRow]
    report: DataReport

    def lines(self, rows: list[int]) -> list[int]:
        """Lines of the data set's file that these training rows hold, in order."""
        return [example.line for row in rows for example in self.train[row]]

    def digest(self) -> str:
        """SHA-256 over the training rows in their order: a position in them means the same only for the same ones."""
        found = hashlib.sha256()
        for row in self.train:
            found.update(f"row {len(row)};".encode())
            for example in row:
                found.update(array("q", [len(example.input_ids), *example.input_ids, *example.labels]))
        return found.hexdigest()


def prepare(config: Config, dataset_path: Path, tokenizer: Any) -> PreparedData:
    """Read, split, tokenize and pack. Raises TrntuneError for broken data."""
    dataset, length = config.dataset, config.training.max_length
    # The files that fetch makes or downloads have the schema's own names.
    columns = dataset.columns if dataset.source == "jsonl" or dataset.path else ColumnsConfig()
    rows, skipped = read_jsonl(dataset_path, columns, dataset.on_bad_row)
    train_rows, held_out = split(rows, dataset.eval_samples, dataset.split_seed, dataset.max_samples)
    train = tokenize(train_rows, dataset.prompt, dataset.loss_on, length, tokenizer)
    held = tokenize(held_out, dataset.prompt, dataset.loss_on, length, tokenizer)
    packed = to_rows(train.examples, length, dataset.packing)
    random.Random(config.seed).shuffle(packed)
    packed += [[] for _ in range(-len(packed) % config.training.global_batch_size)]
    tokens = sum(len(example.input_ids) for example in train.examples)
    report = DataReport(
        sha256=hashlib.sha256(dataset_path.read_bytes()).hexdigest(),
        rows_read=len(rows),
        rows_skipped=skipped,
        train_examples=len(train.examples),
        eval_examples=len(held.examples),
        truncated=train.truncated + held.truncated,
        dropped=train.dropped + held.dropped,
        train_rows=len(packed),
        train_tokens=tokens,
        padding_fraction=1 - tokens / (len(packed) * length),
    )
    return PreparedData(packed, to_rows(held.examples, length, dataset.packing), held_out, report)


def to_rows(examples: list[Example], max_length: int, packing: bool) -> list[Row]:
    """Several examples a row, best fit, or one."""
    if not packing:
        return [[example] for example in examples]
    return [[examples[i] for i in group] for group in pack([len(e.input_ids) for e in examples], max_length)]
