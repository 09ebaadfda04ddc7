"""From a JSONL file to the rows that the model sees, shared by all engines."""

from __future__ import annotations

import hashlib
import random
from array import array
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launcher import units
from launcher.config.schema import Config
from trainer.data.corpus import Corpus, Texts, open_corpus
from trainer.data.groups import Groups, open_sides
from trainer.data.packed import PackedRows, Row
from trainer.data.split import Places
from trainer.data.tokenize import no_room

__all__ = ["DataReport", "Digests", "PreparedData", "Row", "prepare", "prepare_corpus"]


class Digests(NamedTuple):
    """SHA-256 of the training rows in their order; with a held-out set of one's own also of that, since
    dataset.eval_path is a place only."""

    versioned: str
    """as this version of tokenizers reads them"""
    lasting: str
    """whichever version reads them"""


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
    """examples that lost the end of an answer at training.max_length"""
    dropped: int
    """examples whose prompt alone fills training.max_length"""
    train_rows: int
    train_tokens: int
    padding_fraction: float
    """of the positions of an epoch"""
    unused: dict[str, float] = field(default_factory=dict)
    """fields of the file that aren't read, and their share of its text"""
    turns_cut: int = 0
    """conversations that lost their last turns at training.max_length"""
    left_out: int = 0
    """examples that dataset.too_long=drop left out, since their answers had no room"""
    eval_in_train: int = 0
    """held-out rows of a set of one's own that stand among the training rows too"""
    format: str = "instruction"
    columns: list[str] = field(default_factory=list)
    """that were read"""
    found: str = ""
    """how the format was found, in words"""
    template_sha256: str | None = None
    """of the chat template that conversations and chat prompts are written by"""
    notes: list[str] = field(default_factory=list)
    """what the chat template did to rows"""
    eval_line: int | None = None
    """the first line of a held-out set of one's own"""
    files: list[dict[str, Any]] = field(default_factory=list)
    """where rows come from, with digest, kind and how many are used, where several were put together"""


@dataclass(frozen=True)
class PreparedData:
    """Training rows (whole global batches), evaluation rows, the held-out questions, and the report."""

    train: PackedRows
    eval: PackedRows
    held_out: Texts
    report: DataReport

    def lines(self, rows: list[int]) -> list[int]:
        """Lines of the data set's file that these training rows hold, in order."""
        return self.train.lines(rows)

    @property
    def filled_rows(self) -> int:
        """Training rows that hold something: without the padding of the last global batch."""
        return len(self.train.groups.ends)

    def digests(self) -> Digests:
        """A position in the rows means the same only for the same ones."""
        encoder = self.train.corpus.encoder
        return Digests(self._digest(encoder.identity), self._digest(encoder.lasting_identity))

    def _digest(self, encoder: str) -> str:
        train = self.train.digest(encoder)
        own = self.report.eval_line is not None
        return hashlib.sha256(f"{train}{self.eval.digest(encoder)}".encode()).hexdigest() if own else train


def prepare(config: Config, dataset_path: Path, tokenizer: Any) -> PreparedData:
    """Tokenize, unless that was done before, split and pack. Raises TrntuneError for broken data."""
    return prepare_corpus(config, open_corpus(config, dataset_path, tokenizer))


def prepare_corpus(config: Config, corpus: Corpus) -> PreparedData:
    """Split and pack a corpus. Raises TrntuneError when nothing is left to train on."""
    found, length = open_sides(config, corpus), config.training.max_length
    train, held = found.train, found.eval
    for side in (train, held):
        if not len(side.members):
            raise no_room(length, side.counts.dropped + side.counts.left_out)
    rows = PackedRows(corpus, train, _shuffled(train, config), length, config.dataset.loss_on)
    both, source = train.counts + held.counts, corpus.source
    report = DataReport(
        sha256=corpus.sha256,
        rows_read=len(corpus.rows),
        rows_skipped=corpus.skipped,
        train_examples=len(train.members),
        eval_examples=len(held.members),
        truncated=both.truncated,
        dropped=both.dropped,
        train_rows=len(rows),
        train_tokens=train.counts.tokens,
        padding_fraction=1 - train.counts.tokens / (len(rows) * length),
        unused=dict(corpus.unused),
        turns_cut=both.turns_cut,
        left_out=both.left_out,
        eval_in_train=found.twins,
        format=source.found.format,
        columns=list(source.found.columns),
        found=str(source.found),
        template_sha256=corpus.encoder.template_sha256(),
        notes=corpus.notes,
        eval_line=source.border,
        files=[] if source.origins is None else [asdict(each) for each in source.origins.files],
    )
    evaluation = PackedRows(corpus, held, np.arange(len(held.ends)), length, config.dataset.loss_on)
    return PreparedData(rows, evaluation, Texts(corpus, found.held_out), report)


def _shuffled(train: Groups, config: Config) -> Places:
    """The order of the training rows by the run's seed, and rows of padding (-1) that fill the last global batch."""
    order = array("q", range(len(train.ends)))
    random.Random(config.seed).shuffle(order)
    order.extend([-1] * (-len(order) % config.training.global_batch_size))
    return np.array(order, dtype=np.int64)


def data_notes(report: DataReport) -> list[str]:
    """What the user should know of what became of the data, a line each."""
    counted = (
        (report.rows_skipped, "broken rows were skipped"),
        (report.truncated, "examples were cut at training.max_length, in an answer"),
        (report.turns_cut, "conversations lost their last turns at training.max_length"),
        (report.dropped, "examples were dropped: their prompt alone fills training.max_length"),
        (report.left_out, "examples were left out: their answers end past training.max_length (dataset.too_long=drop)"),
        (report.eval_in_train, "held-out rows stand among the training rows too, so their loss says less"),
    )
    mixed = [f"{each['rows']:,} rows of {each['path']} ({each['part']})" for each in report.files]
    told = [f"{count:,} {what}" for count, what in counted if count] + mixed + report.notes
    unused = f"fields of the data that are not used: {units.shares(report.unused)} of the text"
    return [*told, unused] if report.unused else told
