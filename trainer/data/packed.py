"""The rows that a model trains on, made from a corpus when they are asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import overload

import numpy as np

from launcher.architecture.attention_pairs import Extents, mean_pairs
from trainer.data.corpus import Corpus
from trainer.data.groups import Groups
from trainer.data.spans import kept_lengths
from trainer.data.split import WINDOW, Places
from trainer.data.tokenize import Example, example

Row = list[Example]
"""The documents of one fixed row of max_length positions; an empty list is a row of padding."""
_PIECE = 1 << 16


@dataclass(frozen=True)
class Sums:
    """What an epoch holds."""

    examples: int
    tokens: float
    trained: float
    """labels that the loss counts"""
    pairs: float
    """query/key pairs of causal attention inside the documents, as far as layers reach: the mean of the layers"""

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(mine + others for mine, others in zip(astuple(self), astuple(other), strict=True)))


class PackedRows(Sequence[Row]):
    """A sequence of rows; a slice is one too, and shares its memory."""

    def __init__(self, corpus: Corpus, groups: Groups, order: Places, max_length: int, loss_on: str) -> None:
        """``order`` gives the group of each row, -1 for a row of padding."""
        self.corpus, self.groups, self.order = corpus, groups, order
        self.max_length, self.loss_on = max_length, loss_on

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> PackedRows: ...

    def __getitem__(self, index: int | slice) -> Row | PackedRows:
        if isinstance(index, slice):
            return PackedRows(self.corpus, self.groups, self.order[index], self.max_length, self.loss_on)
        members = self._members(index)
        kept = self._kept(np.array(members, dtype=np.int64)).tolist()
        return [self._example(*each) for each in zip(self.corpus.ids(members), members, kept, strict=True)]

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def _members(self, index: int) -> list[int]:
        group = int(self.order[index])
        return [] if group < 0 else self.groups.of(group).tolist()

    def _kept(self, members: Places) -> Places:
        return kept_lengths(self.corpus.rows, members, self.max_length, self.corpus.spans)

    def _example(self, ids: list[int], place: int, kept: int) -> Example:
        row, spans = self.corpus.rows[place], self.corpus.spans
        border, answers = int(row["prompt"]), None if spans is None else spans.of(place)
        return example(ids[:border], ids[border:], self.loss_on, kept, int(row["line"]), answers)

    def lines(self, rows: Sequence[int]) -> list[int]:
        """Lines of the data set's file that these rows hold, in order."""
        return [int(self.corpus.rows["line"][place]) for row in rows for place in self._members(row)]

    def digest(self, encoder: str) -> str:
        """SHA-256 of the rows in their order, by the hashes of their questions and answers, their lengths in tokens,
        and all else that the tokens depend on; ``encoder`` is an identity of the corpus's."""
        facts = [encoder, self.corpus.source.split_seed, self.max_length, self.loss_on]
        found = hashlib.sha256(json.dumps(facts).encode())
        found.update(self.order.astype("<i8").tobytes())
        found.update(self.groups.ends.astype("<i8").tobytes())
        for start in range(0, len(self.groups.members), _PIECE):
            rows = self.corpus.rows[self.groups.members[start : start + _PIECE]]
            for name in ("question", "answer", "prompt", "length"):
                found.update(np.ascontiguousarray(rows[name]).tobytes())
        return found.hexdigest()

    def sums(self, extents: Extents = ()) -> Sums:
        """Over all documents, without looking at their tokens; ``extents``: how far each layer's attention reaches."""
        total = Sums(0, 0.0, 0.0, 0.0)
        for start in range(0, len(self.groups.members), WINDOW):
            places = np.asarray(self.groups.members[start : start + WINDOW])
            kept = self._kept(places)
            lengths = kept.astype(np.float64)
            pairs = mean_pairs(lengths, extents)
            total += Sums(len(places), float(lengths.sum()), self._trained(places, kept), float(pairs.sum()))
        return total

    def _trained(self, places: Places, kept: Places) -> float:
        """The first token of a document is predicted by nothing."""
        if self.loss_on == "response" and self.corpus.spans is not None:
            return float(self.corpus.spans.trained(places, kept))
        prompts = self.corpus.rows["prompt"][places].astype(np.int64)
        masked = np.maximum(prompts, 1) if self.loss_on == "response" else np.ones(len(places), dtype=np.int64)
        return float((kept - masked).sum())
