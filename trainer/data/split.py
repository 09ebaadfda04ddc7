"""Which rows are held out: the same whatever the file's order and the training seed, decided by 16 bytes a row.

Rows are ordered by a hash of ``split_seed`` and the question (instruction and context), rows of one question by a hash
of the answer. The first ``max_samples`` are used and the first ``eval_samples`` of those held out; rows that ask the
same fall on one side, so that no held-out question was trained on.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.config.schema import DatasetConfig
from launcher.errors import TrntuneError
from trainer.data.rows import Row

WINDOW = 1 << 20
"""Rows that are sorted, and then packed, at a time: what bounds the memory of a set of any size."""
_BUCKET_BITS = 16

Keys = npt.NDArray[Any]
"""Structured, with the fields question and answer: 64 bits of a hash each."""
Places = npt.NDArray[np.int64]
"""Indices of rows."""


def keys(row: Row, split_seed: int) -> tuple[int, int]:
    """The hashes of question and answer. Two questions that share one would only share their side."""
    question, answer = _digests(row, split_seed)
    return int.from_bytes(question, "big"), int.from_bytes(answer, "big")


def keys_of(rows: Iterable[Row], split_seed: int) -> npt.NDArray[np.uint64]:
    """[rows, 2]: the ``keys`` of each."""
    digests = b"".join(digest for row in rows for digest in _digests(row, split_seed))
    return np.frombuffer(digests, dtype=">u8").reshape(-1, 2)


def _digests(row: Row, split_seed: int) -> tuple[bytes, bytes]:
    question, answer = row.hashed()
    return (
        hashlib.sha256(f"{split_seed}\0{question}".encode()).digest()[:8],
        hashlib.sha256(answer.encode()).digest()[:8],
    )


def split(
    found: Keys, eval_samples: int, max_samples: int | None, window: int = WINDOW
) -> tuple[Places, Iterator[Places]]:
    """The held-out rows in their order, and the training rows in theirs, about ``window`` at a time. Raises
    TrntuneError when no row is left to train on."""
    used = min(len(found), max_samples or len(found))
    parts = _cut(in_order(found, window), used)
    first = next(parts)
    while len(first) <= eval_samples and (more := next(parts, None)) is not None:
        first = np.concatenate([first, more])
    questions = found["question"][first]
    # Rows of one question lie side by side, and never in two windows.
    border = used if eval_samples >= used else int(np.searchsorted(questions, questions[eval_samples - 1], "right"))
    if border >= used:
        raise TrntuneError(
            f"dataset.eval_samples={eval_samples}: only {used} rows, so none is left to train on; "
            "hold out fewer or use more rows"
        )
    return first[:border], itertools.chain([first[border:]] if border < len(first) else [], parts)


def sides(
    found: Keys, dataset: DatasetConfig, border: int | None, window: int = WINDOW
) -> tuple[Places, Iterator[Places]]:
    """As ``split``, or, where ``border`` is given, rows from that line on as the held-out ones and ``max_samples`` of
    those before it to train on; ``found`` then has the field line too."""
    if border is None:
        return split(found, dataset.eval_samples, dataset.max_samples, window)
    first = int(np.searchsorted(found["line"], border))
    if not 0 < first < len(found):
        what = "dataset.path has" if first == 0 else "the held-out set has"
        raise TrntuneError(f"{what} no row that can be used; look at its files")
    held_out = np.concatenate(list(in_order(found[first:], window))) + first
    return held_out, _cut(in_order(found[:first], window), min(first, dataset.max_samples or first))


def twins(found: Keys, held_out: Places, training: Iterator[Places]) -> int:
    """How many held-out rows have question and answer of a training row."""
    wanted = _both(found, held_out)
    there = np.zeros(len(wanted), dtype=bool)
    for places in training:
        there |= np.isin(wanted, _both(found, places))
    return int(there.sum())


def _both(found: Keys, places: Places) -> npt.NDArray[np.uint64]:
    """One number for question and answer."""
    chosen = found[places]
    return np.asarray(chosen["question"] * np.uint64(0x9E3779B97F4A7C15) ^ chosen["answer"], dtype=np.uint64)


def _cut(parts: Iterator[Places], most: int) -> Iterator[Places]:
    """The first ``most`` rows of all parts."""
    for part in parts:
        if most <= 0:
            return
        yield part[:most]
        most -= len(part)


def in_order(found: Keys, window: int) -> Iterator[Places]:
    """All rows by their hashes, about ``window`` at a time. Hashes are spread evenly, so ranges of them are too."""
    if len(found) <= window:
        yield _sorted(found, np.arange(len(found)))
        return
    ends = np.cumsum(_histogram(found, window))
    bounds = [0, *np.searchsorted(ends, np.arange(window, len(found), window), "right").tolist(), len(ends)]
    for low, high in itertools.pairwise(dict.fromkeys(bounds)):
        chosen = [start + np.flatnonzero((b >= low) & (b < high)) for start, b in _buckets(found, window)]
        yield _sorted(found, np.concatenate(chosen))


def _buckets(found: Keys, window: int) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
    """The top bits of the questions' hashes, ``window`` rows at a time, and where each piece begins."""
    for start in range(0, len(found), window):
        yield start, found["question"][start : start + window] >> np.uint64(64 - _BUCKET_BITS)


def _histogram(found: Keys, window: int) -> Places:
    counts = np.zeros(1 << _BUCKET_BITS, dtype=np.int64)
    for _, buckets in _buckets(found, window):
        counts += np.bincount(buckets.astype(np.int64), minlength=len(counts))
    return counts


def _sorted(found: Keys, places: Places) -> Places:
    """Rows that are alike stay in the file's order."""
    chosen = found[places]
    return places[np.lexsort((chosen["answer"], chosen["question"]))]
