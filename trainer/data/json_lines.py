"""The rows of a JSONL file: one after another, the first ones, or those at places that are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from launcher.config.schema import ColumnsConfig
from launcher.errors import TrntuneError
from trainer.data.readers import BROKEN
from trainer.data.rows import (
    BadRowError,
    InstructionRow,
    Located,
    Parse,
    Row,
    Uses,
    among,
    instruction_rows,
    instruction_uses,
    looks_like_context,
)

_DEFAULT_CONTEXT = ColumnsConfig().context


_MAX_FIELDS = 1000
"""names that are remembered: a file may have another for each row"""


_BOM = b"\xef\xbb\xbf"


class JsonLines:
    """The rows of a JSONL file, one after another, in memory that doesn't grow with the file.

    Iterating gives (byte offset of its line, row). Blank lines and a byte order mark are ignored. Raises TrntuneError
    that names file and line at the first broken row, unless ``on_bad_row`` is "skip", and at the end when no row was
    left (then with what is wrong with the first), or when what looks like a context would be left out unasked.
    ``skipped`` counts broken rows.
    """

    def __init__(
        self,
        path: Path,
        columns: ColumnsConfig,
        on_bad_row: str,
        parse: Parse | None = None,
        uses: Uses | None = None,
        place: Callable[[int], str] | None = None,
        named: str | None = None,
        nested: Sequence[str] = (),
    ) -> None:
        """``parse`` makes the rows of the fields in ``uses``, by default instruction rows; ``place`` says where a line
        comes from, by default FILE:LINE, and ``named`` where all do; ``nested``: as for ``lifted``."""
        self.path, self.on_bad_row, self.nested = path, on_bad_row, nested
        self.uses = uses or instruction_uses(columns)
        self._to_row = parse or instruction_rows(columns)
        self.place = place or (lambda line: f"{path}:{line}")
        self.named = named or str(path)
        self.skipped = 0
        self._first_problem = ""
        self._wanted_seen = False
        self._sizes: dict[str, int] = {}
        """characters of text by field, of usable rows"""

    def __iter__(self) -> Iterator[Located]:
        rows = 0
        for number, offset, line in _lines(self.path):
            try:
                record = lifted(_parse(line), self.nested)
                self._wanted_seen |= self.uses.wanted in record
                row = self._to_row(record, number)
            except BadRowError as problem:
                self._skip(number, problem)
                continue
            rows += 1
            self._measure(record)
            yield offset, row
        self._check(rows)

    @property
    def unused(self) -> dict[str, float]:
        """Fields with text that aren't read, and their share of all text; the largest first."""
        total = sum(self._sizes.values())
        left = {name: size / total for name, size in self._sizes.items() if size and name not in self.uses.names}
        return dict(sorted(left.items(), key=lambda item: -item[1]))

    def _measure(self, record: dict[str, Any]) -> None:
        sizes = self._sizes
        for name, value in record.items():
            if name in sizes or len(sizes) < _MAX_FIELDS:
                sizes[name] = sizes.get(name, 0) + (len(value) if type(value) is str else _text_size(value))

    def _skip(self, number: int, problem: BadRowError) -> None:
        if self.on_bad_row == "stop":
            raise TrntuneError(
                f"{self.place(number)}: {problem}; fix the row, or leave such rows out with dataset.on_bad_row=skip"
            ) from None
        self.skipped += 1
        self._first_problem = self._first_problem or f"; {self._named(number)}: {problem}"

    def _named(self, number: int) -> str:
        place = self.place(number)
        return f"line {number}" if place == f"{self.path}:{number}" else place

    def _check(self, rows: int) -> None:
        """What can only be said of the whole file."""
        if not rows:
            raise TrntuneError(f"{self.named}: no usable row ({self.skipped} broken){self._first_problem}")
        wanted = self.uses.wanted
        if wanted not in (None, _DEFAULT_CONTEXT) and not self._wanted_seen:
            raise TrntuneError(
                f"dataset.columns.context={wanted}: no row of {self.named} has this field "
                f"({among(wanted, self._sizes)}); use null when there is no context"
            )
        if self.uses.remedy is not None and not any(self._sizes.get(name) for name in self.uses.contexts):
            self._check_lost_context(self.uses.remedy)

    def _check_lost_context(self, remedy: str) -> None:
        """Where no row has a context: is there another field that looks like one?"""
        for name, share in self.unused.items():
            if looks_like_context(name):
                raise TrntuneError(
                    f"{self.named}: field {name!r} looks like a context and would be left out, {share:.1%} of the "
                    f"text; {remedy.format(name=name)}, or leave it out with dataset.columns.context=null"
                )


def read_jsonl(path: Path, columns: ColumnsConfig, on_bad_row: str) -> tuple[list[InstructionRow], int]:
    """All rows of a JSONL file that fits into memory, and how many were skipped. Raises as JsonLines."""
    lines = JsonLines(path, columns, on_bad_row)
    rows = [row for _, row in lines if isinstance(row, InstructionRow)]
    return rows, lines.skipped


def lifted(record: dict[str, Any], nested: Sequence[str]) -> dict[str, Any]:
    """The record with what lies at the paths ``nested`` (as ``data.q``: field q of the object in field data) in fields
    of these names, instead of where it was. A field that has such a name itself goes before."""
    for path in nested:
        keys = None if path in record else _keys(record, path.split("."))
        if keys is not None:
            value: Any = record
            for key in keys:
                value = value[key]
            record = {**_without(record, keys), path: value}
    return record


def _keys(value: Any, steps: Sequence[str]) -> list[str] | None:
    """The names that lead down a path, the longest first: they may have dots themselves. None where nothing is."""
    if not isinstance(value, dict):
        return None
    for count in range(len(steps), 0, -1):
        key = ".".join(steps[:count])
        if key in value:
            rest = [] if count == len(steps) else _keys(value[key], steps[count:])
            if rest is not None:
                return [key, *rest]
    return None


def _without(record: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    first, *rest = keys
    if rest:
        return {**record, first: _without(record[first], rest)}
    return {key: value for key, value in record.items() if key != first}


def read_at(path: Path, parse: Parse, places: Sequence[tuple[int, int]], nested: Sequence[str] = ()) -> list[Row]:
    """The rows at (byte offset, line number) of a file that was read before. Raises TrntuneError for one that is no
    row any more: the file has changed since."""
    try:
        with path.open("rb") as stream:
            return [_row_at(stream, parse, nested, *place) for place in places]
    except OSError as error:
        raise _unreadable(path, error) from None
    except BadRowError:
        raise TrntuneError(f"{path} was changed while it was in use; start the run again") from None


def _row_at(stream: BinaryIO, parse: Parse, nested: Sequence[str], offset: int, line: int) -> Row:
    stream.seek(offset)
    text = stream.readline()
    return parse(lifted(_parse(text.removeprefix(_BOM) if line == 1 else text), nested), line)


def first_records(path: Path, most: int, nested: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The first records of a JSONL file, without those that are broken."""
    found: list[dict[str, Any]] = []
    for _, _, line in _lines(path):
        try:
            found.append(lifted(_parse(line), nested))
        except BadRowError:
            continue
        if len(found) == most:
            break
    return found


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, byte offset and text of lines that are not blank, as bytes: a line that is not UTF-8 must not hide the
    others."""
    try:
        with path.open("rb") as stream:
            offset = 0
            for number, line in enumerate(stream, start=1):
                text = line.removeprefix(_BOM) if number == 1 else line
                if text.strip():
                    yield number, offset, text
                offset += len(line)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> TrntuneError:
    return TrntuneError(f"{path}: can't be read: {error.strerror}; set dataset.path to a JSONL file")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = _loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits for Python
        raise BadRowError(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise BadRowError(f"a JSON object is wanted, not {type(record).__name__}")
    if BROKEN in record:
        raise BadRowError(str(record[BROKEN]))
    return record


_decode = json.JSONDecoder().raw_decode


def _loads(text: str) -> Any:
    """As json.loads, without its search for the ends of a text."""
    try:
        value, end = _decode(text)
    except ValueError:  # or space before it
        return json.loads(text)
    return json.loads(text) if text[end:].strip(" \t\r\n") else value


def _text_size(value: Any) -> int:
    """Characters of all text in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_text_size, value)) if isinstance(value, list) else 0
