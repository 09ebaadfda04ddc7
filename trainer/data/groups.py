"""Which rows of a corpus are held out, and which share a packed row: indices only, made a window at a time and kept in
files, so that a set of any size fits into memory and its ranks don't each do it again."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.io import write_json
from trainer.data.corpus import Corpus
from trainer.data.packing import alone, pack
from trainer.data.spans import kept_lengths
from trainer.data.split import WINDOW, Places, sides, twins
from trainer.fetch import cache

_FORMAT = 2
"""Raised when the split or the packing changes: it is in the entry's name."""
_INDEX = np.dtype("<i8")
_FILES = ("held_out", "train_members", "train_ends", "eval_members", "eval_ends")


@dataclass(frozen=True)
class Counts:
    """What became of the rows of one side."""

    tokens: int = 0
    """real ones, after cutting"""
    truncated: int = 0
    """rows that lost the end of an answer"""
    turns_cut: int = 0
    """conversations that lost their last turns, and no part of an answer"""
    dropped: int = 0
    """rows whose prompt leaves no room for an answer; they are no members"""
    left_out: int = 0
    """rows that dataset.too_long=drop leaves out, since their end has no room"""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(mine + others for mine, others in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Groups:
    """Packed rows of one side of the split."""

    members: Places
    """rows of the corpus, packed row after packed row"""
    ends: Places
    """where each packed row ends in them"""
    counts: Counts

    def of(self, number: int) -> Places:
        """The rows of a packed row."""
        return self.members[self.ends[number - 1] if number else 0 : self.ends[number]]


@dataclass(frozen=True)
class Sides:
    """The split of a corpus; ``held_out`` also has the rows that no group holds."""

    train: Groups
    eval: Groups
    held_out: Places
    twins: int
    """held-out rows of a set of one's own that stand among the training rows too"""


def open_sides(config: Config, corpus: Corpus) -> Sides:
    """The sides of a run's corpus, from the cache where the corpus is. Raises TrntuneError when nothing is left to
    train on."""
    make = functools.partial(_write, config, corpus)
    if corpus.directory is None:
        return _in_memory(make)
    settings = {**_settings(config), "corpus": corpus.directory.name.removesuffix("-index"), "format": _FORMAT}
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return _load(cache.entry(f"packing-{name}", functools.partial(_in_files, make)))


def _settings(config: Config) -> dict[str, Any]:
    """What the sides depend on beside the corpus."""
    dataset = config.dataset
    return {
        "eval_samples": dataset.eval_samples,
        "max_samples": dataset.max_samples,
        "max_length": config.training.max_length,
        "packing": dataset.packing,
        "too_long": dataset.too_long,
    }


Streams = dict[str, BinaryIO]
Facts = dict[str, Any]
"""The counts of both sides, and the twins."""


def _write(config: Config, corpus: Corpus, streams: Streams) -> Facts:
    """Write the sides' indices; returns what is known of them."""
    both = functools.partial(sides, corpus.rows, config.dataset, corpus.source.border, WINDOW)
    held_out, training = both()
    streams["held_out"].write(held_out.astype(_INDEX).tobytes())
    evaluation = (held_out[start : start + WINDOW] for start in range(0, len(held_out), WINDOW))
    return {
        "train": asdict(_side(config, corpus, training, streams["train_members"], streams["train_ends"])),
        "eval": asdict(_side(config, corpus, evaluation, streams["eval_members"], streams["eval_ends"])),
        "twins": 0 if corpus.source.border is None else twins(corpus.rows, *both()),
    }


def _side(config: Config, corpus: Corpus, windows: Iterator[Places], members: BinaryIO, ends: BinaryIO) -> Counts:
    """Pack the rows of each window among themselves, or give each a row of its own."""
    total, done = Counts(), 0
    for places in windows:
        length = config.training.max_length
        kept, counts = _kept(config, corpus, places)
        fits = kept > 0
        order, bounds = pack(kept[fits], length) if config.dataset.packing else alone(int(fits.sum()))
        members.write(places[fits][order].astype(_INDEX).tobytes())
        ends.write((bounds + done).astype(_INDEX).tobytes())
        done += int(fits.sum())
        total += counts
    return total


def _kept(config: Config, corpus: Corpus, places: Places) -> tuple[Places, Counts]:
    """[places] tokens that are used of each row, 0 of one that isn't used; and what became of them. Raises TrntuneError
    for a row that is too long where that is an error."""
    room, rule = config.training.max_length, config.dataset.too_long
    rows = corpus.rows[places]
    whole, kept = rows["length"].astype(np.int64), kept_lengths(corpus.rows, places, room, corpus.spans)
    long, no_prompt = whole > room, kept == 0
    if rule == "error" and long.any():
        raise _too_long(corpus, places[long], room)
    left_out = long & ~no_prompt if rule == "drop" else np.zeros(len(places), dtype=bool)
    kept[left_out] = 0
    cut = (kept > 0) & (kept < whole)
    # Where an answer ends, nothing is missing of it: the row has lost turns only.
    at_turn = np.zeros(len(places), dtype=bool)
    if corpus.spans is not None:
        places_cut = np.flatnonzero(cut)
        at_turn[places_cut] = corpus.spans.last_whole(places[places_cut], room) == kept[places_cut]
    counts = Counts(
        int(kept.sum()), int((cut & ~at_turn).sum()), int(at_turn.sum()), int(no_prompt.sum()), int(left_out.sum())
    )
    return kept, counts


def _too_long(corpus: Corpus, places: Places, room: int) -> TrntuneError:
    first = int(places[np.argmin(corpus.rows["line"][places])])
    more = f" (and {len(places) - 1:,} more)" if len(places) > 1 else ""
    return TrntuneError(
        f"{corpus.source.place(int(corpus.rows['line'][first]))}: {int(corpus.rows['length'][first]):,} tokens are "
        f"more than training.max_length={room}{more}; use a longer one, or dataset.too_long=cut or drop"
    )


def _in_memory(make: Callable[[Streams], Facts]) -> Sides:
    streams = {name: BytesIO() for name in _FILES}
    facts = make(dict(streams))
    return _sides({name: np.frombuffer(stream.getvalue(), dtype=_INDEX) for name, stream in streams.items()}, facts)


def _in_files(make: Callable[[Streams], Facts], directory: Path) -> None:
    with ExitStack() as stack:
        streams: Streams = {name: stack.enter_context((directory / f"{name}.bin").open("wb")) for name in _FILES}
        facts = make(streams)
    write_json(directory / "facts.json", facts)


def _load(directory: Path) -> Sides:
    facts = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
    return _sides({name: _map(directory / f"{name}.bin") for name in _FILES}, facts)


def _map(file: Path) -> Places:
    """Memory-mapped; an empty file can't be."""
    return np.memmap(file, dtype=_INDEX, mode="r") if file.stat().st_size else np.empty(0, dtype=_INDEX)


def _sides(arrays: dict[str, Places], facts: Facts) -> Sides:
    train, evaluation = (
        Groups(arrays[f"{side}_members"], arrays[f"{side}_ends"], Counts(**facts[side])) for side in ("train", "eval")
    )
    return Sides(train, evaluation, arrays["held_out"], facts["twins"])
