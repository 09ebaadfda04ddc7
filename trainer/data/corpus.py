"""A tokenized data set: made once for a file, a tokenizer and a prompt, then memory-mapped by every rank of every run.

Two files in a cache entry: rows.bin, a record of 48 bytes a row in the file's order, and tokens.bin, the ids of all
rows one after another. With dataset.streaming there is no tokens.bin: rows are read and tokenized when they are used.
Conversations have two more: spans.bin, where each answer begins and ends in its row, and span_ends.bin, where those of
each row end in it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.io import write_json
from trainer.data import build
from trainer.data.content import file_sha256
from trainer.data.encoder import Encoder
from trainer.data.json_lines import JsonLines
from trainer.data.rows import Located, Row
from trainer.data.source import Source
from trainer.data.spans import SPAN, RowSpans
from trainer.fetch import cache

ROWS, TOKENS, SPANS, SPAN_ENDS = "rows.bin", "tokens.bin", "spans.bin", "span_ends.bin"
_FORMAT = 3
"""Raised when what is written changes: it is in the entry's name."""


@dataclass(frozen=True)
class Corpus:
    """The rows of a file as tokens; nothing is read before it is asked for."""

    source: Source
    encoder: Encoder
    rows: npt.NDArray[Any]
    """[rows] of build.ROW"""
    tokens: npt.NDArray[Any] | None
    """[tokens], or None: made anew from the file"""
    sha256: str
    """of the file"""
    skipped: int
    """broken rows left out"""
    directory: Path | None
    """the cache entry; None in memory"""
    unused: Mapping[str, float]
    """fields that aren't read, and their share of the text"""
    spans: RowSpans | None = None
    """the answers of conversations; None: each row is a prompt and what follows it"""
    notes: list[str] = field(default_factory=list)
    """what became of rows when they were encoded, in words for the user"""

    def ids(self, places: Sequence[int]) -> list[list[int]]:
        """The tokens of rows, whole: prompt, answer, EOS. Raises TrntuneError when the file was changed meanwhile."""
        if self.tokens is None:
            return self._read(places)
        starts, lengths = self.rows["start"], self.rows["length"]
        return [self.tokens[starts[i] : starts[i] + lengths[i]].tolist() for i in map(int, places)]

    def texts(self, places: Sequence[int]) -> list[Row]:
        """The rows as they stand in the file."""
        where = [(int(self.rows["offset"][i]), int(self.rows["line"][i])) for i in map(int, places)]
        return self.source.read_at(where)

    def _read(self, places: Sequence[int]) -> list[list[int]]:
        if not len(places):
            return []
        prompts, answers, _ = self.encoder.encode(self.texts(places))
        found = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        expected = [(int(self.rows["prompt"][i]), int(self.rows["length"][i])) for i in map(int, places)]
        if expected != [(len(prompt), len(whole)) for prompt, whole in zip(prompts, found, strict=True)]:
            raise TrntuneError(f"{self.source.path} was changed while it was in use; start the run again")
        return found


class Texts(Sequence[Row]):
    """Rows of a corpus as they stand in the file, read when they are asked for; a slice is a list."""

    def __init__(self, corpus: Corpus, places: npt.NDArray[np.int64]) -> None:
        self._corpus, self._places = corpus, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return self._corpus.texts(self._places[index].tolist())
        return self._corpus.texts([int(self._places[index])])[0]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), build.BATCH):
            yield from self[start : start + build.BATCH]


def identity(source: Source, encoder: Encoder, sha256: str) -> str:
    """A name for the contents: another file, tokenizer or reading of it gives another."""
    facts = {**source.facts(), "path": sha256, "encoder": encoder.identity, "format": _FORMAT}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def open_corpus(config: Config, path: Path, tokenizer: Any) -> Corpus:
    """The corpus of a run, from the cache; made by the first who asks, while the others wait. Raises TrntuneError for
    broken data."""
    source = Source.of(config, path)
    encoder = source.encoder(tokenizer)
    name = entry_name(source, encoder, file_sha256(path))
    whole = cache.root() / name
    if config.dataset.streaming and not whole.is_dir():
        return load(cache.entry(f"{name}-index", functools.partial(_write, source, encoder, False)), source, encoder)
    return load(cache.entry(name, functools.partial(_write, source, encoder, True)), source, encoder)


def entry_name(source: Source, encoder: Encoder, sha256: str) -> str:
    return f"tokens-{identity(source, encoder, sha256)[:16]}"


def find_corpus(config: Config, path: Path, tokenizer: Any) -> Corpus | None:
    """The corpus that an earlier run has made, or None."""
    source = Source.of(config, path)
    encoder = source.encoder(tokenizer)
    name = entry_name(source, encoder, file_sha256(path))
    made = [entry for entry in (cache.root() / name, cache.root() / f"{name}-index") if entry.is_dir()]
    return load(made[0], source, encoder) if made else None


def corpus_of(rows: Iterable[Located], lines: JsonLines, source: Source, encoder: Encoder, sha256: str) -> Corpus:
    """A corpus in memory, of rows that have been read by ``lines``."""
    streams = {name: io.BytesIO() for name in _FILES}
    build.write(iter(rows), source.split_seed, encoder, build.Streams(*streams.values()), build.silent)
    rows_, tokens, spans, ends = (
        np.frombuffer(streams[name].getvalue(), dtype=dtype) for name, dtype in _dtypes(encoder).items()
    )
    kept = RowSpans(spans, ends) if source.found.conversational else None
    return Corpus(source, encoder, rows_, tokens, sha256, lines.skipped, None, lines.unused, kept, encoder.notes())


_FILES = (ROWS, TOKENS, SPANS, SPAN_ENDS)


def _dtypes(encoder: Encoder) -> dict[str, np.dtype[Any]]:
    return {ROWS: build.ROW, TOKENS: encoder.dtype, SPANS: SPAN, SPAN_ENDS: np.dtype("<i8")}


def _write(source: Source, encoder: Encoder, keep_tokens: bool, directory: Path) -> None:
    """Fill a cache entry."""
    lines = source.lines(encoder)
    unwanted = {
        TOKENS: not keep_tokens,
        SPANS: not source.found.conversational,
        SPAN_ENDS: not source.found.conversational,
    }
    with ExitStack() as stack:
        places = (Path(os.devnull) if unwanted.get(name) else directory / name for name in _FILES)
        streams = build.Streams(*(stack.enter_context(place.open("wb")) for place in places))
        build.write(iter(lines), source.split_seed, encoder, streams, build.told(source.path))
    facts = {"skipped": lines.skipped, "unused": lines.unused, "notes": encoder.notes()}
    write_json(directory / "facts.json", {"sha256": file_sha256(source.path), **facts})


def load(directory: Path, source: Source, encoder: Encoder) -> Corpus:
    """A cache entry, memory-mapped."""
    facts = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
    found = {
        name: np.memmap(directory / name, dtype=dtype, mode="r") if (directory / name).is_file() else None
        for name, dtype in _dtypes(encoder).items()
    }
    rows, spans, ends = found[ROWS], found[SPANS], found[SPAN_ENDS]
    assert rows is not None
    kept = None if spans is None or ends is None else RowSpans(spans, ends)
    return Corpus(
        source,
        encoder,
        rows,
        found[TOKENS],
        facts["sha256"],
        facts["skipped"],
        directory,
        facts["unused"],
        kept,
        facts["notes"],
    )
