"""Writing a corpus: reading and writing in one thread, beside the tokenizer's own, in memory that doesn't grow."""

from __future__ import annotations

import gc
import itertools
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from trainer.data.encoder import Encoded, Encoder, Spans
from trainer.data.rows import Located
from trainer.data.spans import SPAN
from trainer.data.split import keys_of

ROW = np.dtype(
    [
        ("question", "<u8"),  # trainer.data.split.keys
        ("answer", "<u8"),
        ("offset", "<i8"),  # of its line in the file, bytes
        ("line", "<i8"),  # from 1
        ("start", "<i8"),  # of its ids among all tokens
        ("prompt", "<u4"),  # tokens of the prompt
        ("length", "<u4"),  # of prompt, answer and EOS
    ]
)
BATCH = 1000
_AHEAD = 2  # batches that wait for the tokenizer, so that it never waits for Python
_ALLOCATIONS = 100_000
"""between two looks of Python's collector, about those of ten batches"""
_SAY_SECONDS = 10.0


class Streams(NamedTuple):
    """Where a corpus is written to."""

    records: BinaryIO
    tokens: BinaryIO
    spans: BinaryIO
    span_ends: BinaryIO


Say = Callable[[int, int], None]
"""Told after each batch how many rows are done, and how far the file is read, bytes."""


def write(rows: Iterator[Located], split_seed: int, encoder: Encoder, streams: Streams, say: Say) -> None:
    """Append a ROW record and the ids of each row; of conversations also their answers."""
    done = written = answered = 0
    for batch, encoded in tokenized(rows, encoder):
        prompts, answers, spans = encoded
        lengths = np.array(list(map(len, prompts))), np.array(list(map(len, answers)))
        written = _append(streams.records, batch, split_seed, *lengths, written)
        flat = array(encoder.dtype.char)
        for prompt, answer in zip(prompts, answers, strict=True):
            flat.fromlist(prompt)
            flat.fromlist(answer)
        streams.tokens.write(flat.tobytes())
        if spans is not None:
            answered = _append_spans(streams, spans, answered)
        done += len(batch)
        say(done, batch[-1][0])


def _append_spans(streams: Streams, spans: list[Spans], start: int) -> int:
    """Write the answers of a batch, which are ``start`` and following. Returns how many there are then."""
    ends = start + np.cumsum(np.array(list(map(len, spans)), dtype=np.int64))
    streams.span_ends.write(ends.astype("<i8").tobytes())
    streams.spans.write(np.array(list(itertools.chain.from_iterable(spans)), dtype=SPAN).tobytes())
    return int(ends[-1])


def _append(records: BinaryIO, batch: list[Located], split_seed: int, prompts: Any, answers: Any, start: int) -> int:
    """Write the records of a batch, whose ids begin at ``start``. Returns where they end."""
    ends = start + np.cumsum(prompts + answers)
    found = np.empty(len(batch), dtype=ROW)
    found["question"], found["answer"] = keys_of((row for _, row in batch), split_seed).T
    found["offset"], found["line"] = zip(*((offset, row.line) for offset, row in batch), strict=True)
    found["prompt"], found["length"] = prompts, prompts + answers
    found["start"] = ends - found["length"]
    records.write(found.tobytes())
    return int(ends[-1])


def tokenized(rows: Iterator[Located], encoder: Encoder) -> Iterator[tuple[list[Located], Encoded]]:
    """Batches of rows with their ids. The tokenizer, whose own threads need no Python, works on the next batches
    meanwhile."""
    with encoder.ready(), _rarely_collected(), ThreadPoolExecutor(1, "tokenize") as pool:
        waiting: deque[tuple[list[Located], Future[Any]]] = deque()
        for batch in _batches(rows):
            waiting.append((batch, pool.submit(encoder.start, *encoder.texts([row for _, row in batch]))))
            if len(waiting) > _AHEAD:
                yield _ended(waiting.popleft(), encoder)
        while waiting:
            yield _ended(waiting.popleft(), encoder)


@contextmanager
def _rarely_collected() -> Iterator[None]:
    """Rows and their ids hold no cycles, and Python's collector would look at each of the lists several times."""
    kept = gc.get_threshold()
    gc.set_threshold(_ALLOCATIONS, *kept[1:])
    try:
        yield
    finally:
        gc.set_threshold(*kept)


def _ended(item: tuple[list[Located], Future[Any]], encoder: Encoder) -> tuple[list[Located], Encoded]:
    batch, future = item
    return batch, encoder.finish(*future.result())


def _batches(rows: Iterable[Located]) -> Iterator[list[Located]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


def silent(done: int, read: int) -> None:
    """Say nothing."""


def told(path: Path) -> Say:
    """A line on stderr about how far it is, every ten seconds."""
    size, began = path.stat().st_size, time.monotonic()
    last = began

    def say(done: int, read: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SAY_SECONDS:
            last = now
            speed = done / (now - began)
            print(
                f"tokenizing {path.name}, once: {done:,} rows, {read / size:.0%}, {speed:,.0f} rows/s", file=sys.stderr
            )

    return say
