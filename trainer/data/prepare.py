"""From a JSONL file to the rows that the model sees, shared by all engines."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.schema import Config
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.groups import Groups, open_sides
from trainer.data.packed import PackedRows, Row
from trainer.data.rows import InstructionRow
from trainer.data.split import Places
from trainer.data.tokenize import no_room

__all__ = ["DataReport", "PreparedData", "Row", "prepare", "prepare_corpus"]


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
    unused: dict[str, float]
    """fields of the file that dataset.columns names none of, and their share of its text"""


@dataclass(frozen=True)
class PreparedData:
    """Training rows (whole global batches), evaluation rows, the held-out questions, and the report."""

    train: PackedRows
    eval: PackedRows
    held_out: list[InstructionRow]
    report: DataReport

    def lines(self, rows: list[int]) -> list[int]:
        """Lines of the data set's file that these training rows hold, in order."""
        return self.train.lines(rows)

    @property
    def filled_rows(self) -> int:
        """Training rows that hold something: without the padding of the last global batch."""
        return len(self.train.groups.ends)

    def digest(self) -> str:
        """SHA-256 of the training rows in their order: a position in them means the same only for the same ones."""
        return self.train.digest()


def prepare(config: Config, dataset_path: Path, tokenizer: Any) -> PreparedData:
    """Tokenize, unless that was done before, split and pack. Raises TrntuneError for broken data."""
    return prepare_corpus(config, open_corpus(config, dataset_path, tokenizer))


def prepare_corpus(config: Config, corpus: Corpus) -> PreparedData:
    """Split and pack a corpus. Raises TrntuneError when nothing is left to train on."""
    sides, length = open_sides(config, corpus), config.training.max_length
    train, held = sides.train, sides.eval
    for side in (train, held):
        if not len(side.members):
            raise no_room(length, side.counts.dropped)
    rows = PackedRows(corpus, train, _shuffled(train, config), length, config.dataset.loss_on)
    report = DataReport(
        sha256=corpus.sha256,
        rows_read=len(corpus.rows),
        rows_skipped=corpus.skipped,
        train_examples=len(train.members),
        eval_examples=len(held.members),
        truncated=train.counts.truncated + held.counts.truncated,
        dropped=train.counts.dropped + held.counts.dropped,
        train_rows=len(rows),
        train_tokens=train.counts.tokens,
        padding_fraction=1 - train.counts.tokens / (len(rows) * length),
        unused=dict(corpus.unused),
    )
    evaluation = PackedRows(corpus, held, np.arange(len(held.ends)), length, config.dataset.loss_on)
    return PreparedData(rows, evaluation, corpus.texts(sides.held_out.tolist()), report)


def _shuffled(train: Groups, config: Config) -> Places:
    """The order of the training rows by the run's seed, and rows of padding (-1) that fill the last global batch."""
    order = array("q", range(len(train.ends)))
    random.Random(config.seed).shuffle(order)
    order.extend([-1] * (-len(order) % config.training.global_batch_size))
    return np.array(order, dtype=np.int64)
