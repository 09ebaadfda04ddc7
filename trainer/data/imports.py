"""Several files, or one of another kind, put together once as one JSONL file in the cache, with where its lines come
from: everything else reads that, so that a set of any size and kind is tokenized, streamed and taken up again alike.

What is left out of a mixture leaves a blank line, so that line numbers stay those of the files. The rows of a held-out
set of one's own come last.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from launcher.config.schema import DatasetConfig
from launcher.data.files import entries, hub_set, matching
from launcher.errors import TrntuneError
from launcher.io import write_json
from trainer.data.content import file_sha256
from trainer.data.readers import kind_of, lines, unit
from trainer.fetch import cache

_FORMAT = 1
"""Raised when what is written changes: it is in the entry's name."""
_ROWS, _ORIGINS = "rows.jsonl", "origins.json"


@dataclass(frozen=True)
class Origin:
    """A file whose rows are lines of an imported one."""

    path: str
    """as people know it"""
    kind: str
    sha256: str
    unit: str
    """how a row of it is told of: FILE:3 or FILE, row 3"""
    part: str
    """the entry of dataset.path that names it; "eval" for held-out ones"""
    first_line: int = 0
    rows: int = 0
    """that are used"""


@dataclass(frozen=True)
class Origins:
    """Where the lines of an imported file come from."""

    files: tuple[Origin, ...]
    eval_line: int | None
    """from which on rows are held out; None: they are chosen"""

    def place(self, line: int) -> str:
        """The file and the row in it, of a line."""
        number = bisect.bisect_right([each.first_line for each in self.files], line) - 1
        file = self.files[max(number, 0)]
        return f"{file.path}{file.unit}{line - file.first_line + 1}"

    @property
    def named(self) -> str:
        """The files in a few words."""
        first = self.files[0].path
        return first if len(self.files) == 1 else f"{first} and {len(self.files) - 1} more"


@dataclass(frozen=True)
class Part:
    """Files that are mixed with one weight."""

    name: str
    files: tuple[tuple[Path, str], ...]
    """each with the name that people know it by"""
    weight: float | None = None


def origins_of(path: Path) -> Origins | None:
    """Of an imported file; None for any other."""
    file = path.with_name(_ORIGINS)
    if path.name != _ROWS or not path.parent.name.startswith("import-") or not file.is_file():
        return None
    facts = json.loads(file.read_text(encoding="utf-8"))
    return Origins(tuple(Origin(**each) for each in facts["files"]), facts["eval_line"])


OfHub = Callable[[DatasetConfig], Part | None]
"""The rows of dataset.split of a set on the Hub; None where they aren't here."""


def local_file(dataset: DatasetConfig, of_hub: OfHub) -> Path | None:
    """The JSONL file of rows on this machine: the user's own where it is a single one, else an imported one. None where
    ``of_hub`` has a part not here. Raises TrntuneError for files that can't be read."""
    weights: list[float | None] = [*dataset.weights] or [None] * len(entries(dataset.path))
    given = [*zip(entries(dataset.path), weights, strict=True), *((each, None) for each in entries(dataset.eval_path))]
    found = [_part(dataset, each, weight, of_hub) for each, weight in given]
    whole = [part for part in found if part is not None]
    if len(whole) < len(found):
        return None
    parts, held_out = whole[: len(weights)], whole[len(weights) :]
    files = [file for part in parts for file in part.files]
    if not held_out and len(files) == 1 and _lies_as_lines(*files[0]):
        return files[0][0]
    return imported(parts, held_out, dataset.split_seed)


def _lies_as_lines(file: Path, named: str) -> bool:
    """Whether a file can be read where it lies, by the name that people know it by."""
    return str(file) == named and kind_of(file) == "jsonl" and file.suffix != ".gz"


def _part(dataset: DatasetConfig, entry: str, weight: float | None, of_hub: OfHub) -> Part | None:
    try:
        there = hub_set(entry)
        if there is not None:
            part = of_hub(replace(dataset, **asdict(there)))
            return None if part is None else replace(part, name=entry, weight=weight)
        found = matching(entry)
    except ValueError as why:
        raise TrntuneError(f"{entry}: {why}; set dataset.path to what does") from None
    return Part(entry, tuple((path, str(path)) for path in found), weight)


def imported(parts: Sequence[Part], held_out: Sequence[Part], split_seed: int) -> Path:
    """One JSONL file of the rows of ``parts`` and, last, of ``held_out``, from the cache."""
    facts = {
        "format": _FORMAT,
        "split_seed": split_seed if any(part.weight for part in parts) else None,
        "parts": [_identity(part) for part in parts],
        "held_out": [_identity(part) for part in held_out],
    }
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    write = functools.partial(_write, parts, held_out, split_seed)
    return cache.entry(f"import-{name}", write) / _ROWS


def _identity(part: Part) -> list[Any]:
    return [part.weight, [[str(path), named, kind_of(path), file_sha256(path)] for path, named in part.files]]


def _write(parts: Sequence[Part], held_out: Sequence[Part], split_seed: int, directory: Path) -> None:
    chosen = _chosen(parts, split_seed)
    origins: list[Origin] = []
    with (directory / _ROWS).open("wb") as out:
        line = 1
        for part, keep in zip(parts, chosen, strict=True):
            line = _append(out, part, part.name, keep, line, origins)
        border = line if held_out else None
        for part in held_out:
            line = _append(out, part, "eval", None, line, origins)
    write_json(directory / _ORIGINS, {"files": [asdict(each) for each in origins], "eval_line": border})


Keep = Callable[[bytes], bool]


def _append(out: BinaryIO, part: Part, name: str, keep: Keep | None, line: int, origins: list[Origin]) -> int:
    """Write the lines of a part, of which the first is number ``line``; returns the number that follows."""
    for path, named in part.files:
        first, rows = line, 0
        for text in lines(path):
            used = bool(text.strip()) and (keep is None or keep(text))
            out.write(text + b"\n" if used else b"\n")
            rows += used
            line += 1
        origins.append(Origin(named, kind_of(path), file_sha256(path), unit(path), name, first, rows))
    return line


def _chosen(parts: Sequence[Part], split_seed: int) -> list[Keep | None]:
    """Which rows of each part are used: those with the smallest hashes, as many as the weights give the set that is
    used up first no row twice."""
    if not any(part.weight for part in parts):
        return [None] * len(parts)
    hashes = [np.fromiter((_hash(text, split_seed) for text in _rows(part)), dtype=np.uint64) for part in parts]
    shares = [(part.weight or 0.0) / sum(each.weight or 0.0 for each in parts) for part in parts]
    whole = min(len(found) / share for found, share in zip(hashes, shares, strict=True))
    return [
        _below(found, max(1, round(whole * share)), part, split_seed)
        for found, share, part in zip(hashes, shares, parts, strict=True)
    ]


def _rows(part: Part) -> Iterator[bytes]:
    return (text for path, _ in part.files for text in lines(path) if text.strip())


def _below(hashes: npt.NDArray[np.uint64], count: int, part: Part, split_seed: int) -> Keep:
    if not len(hashes):
        raise TrntuneError(f"{part.name}: has no row, so it can't be a part of a mixture; leave it out")
    count = min(count, len(hashes))
    limit = int(np.partition(hashes, count - 1)[count - 1])
    return lambda text: _hash(text, split_seed) <= limit


def _hash(text: bytes, split_seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=str(split_seed).encode()).digest(), "big")
