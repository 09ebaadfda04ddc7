"""Instruction rows: one schema, read from JSON lines with every broken row named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from launcher.errors import TrntuneError, nearest
from launcher.schema import ColumnsConfig

_DEFAULT_CONTEXT = ColumnsConfig().context
# Words in the names of fields that hold what an instruction is about, such as Alpaca's input.
_CONTEXTS = frozenset(
    (
        *("context", "contexts", "input", "inputs", "passage", "passages", "document", "documents", "paragraph"),
        *("paragraphs", "article", "background", "excerpt", "evidence", "knowledge"),
    )
)
_MOST_FIELDS = 1000
"""names that are remembered: a file may have another for each row"""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class InstructionRow:
    """One example of the data set. ``context`` may be empty, the other two not."""

    instruction: str
    context: str
    response: str
    line: int = field(default=0, compare=False)
    """where it is in its file, from 1"""


Located = tuple[int, InstructionRow]
"""Byte offset of a row's line, and the row."""


class BadRow(Exception):
    """Why one row can't be used."""


class JsonLines:
    """The rows of a JSONL file, one after another, in memory that doesn't grow with the file.

    Iterating gives (byte offset of its line, row). Blank lines and a byte order mark are ignored. Raises TrntuneError
    that names file and line at the first broken row, unless ``on_bad_row`` is "skip", and at the end when no row was
    left (then with what is wrong with the first), or when what looks like a context would be left out unasked.
    ``skipped`` counts broken rows.
    """

    def __init__(self, path: Path, columns: ColumnsConfig, on_bad_row: str) -> None:
        self.path, self.columns, self.on_bad_row = path, columns, on_bad_row
        self.skipped = 0
        self._first_problem = ""
        self._context_seen = False
        self._sizes: dict[str, int] = {}
        """characters of text by field, of usable rows"""

    def __iter__(self) -> Iterator[Located]:
        rows = 0
        for number, offset, line in _lines(self.path):
            try:
                record = _parse(line)
                self._context_seen |= self.columns.context in record
                row = _to_row(record, self.columns, number)
            except BadRow as problem:
                self._skip(number, problem)
                continue
            rows += 1
            self._measure(record)
            yield offset, row
        self._check(rows)

    @property
    def unused(self) -> dict[str, float]:
        """Fields with text that no column names, and their share of all text; the largest first."""
        used, total = {self.columns.instruction, self.columns.context, self.columns.response}, sum(self._sizes.values())
        left = {name: size / total for name, size in self._sizes.items() if size and name not in used}
        return dict(sorted(left.items(), key=lambda item: -item[1]))

    def _measure(self, record: dict[str, Any]) -> None:
        sizes = self._sizes
        for name, value in record.items():
            if name in sizes or len(sizes) < _MOST_FIELDS:
                sizes[name] = sizes.get(name, 0) + (len(value) if type(value) is str else _text_size(value))

    def _skip(self, number: int, problem: BadRow) -> None:
        if self.on_bad_row == "stop":
            raise TrntuneError(
                f"{self.path}:{number}: {problem}; fix the row, or leave such rows out with dataset.on_bad_row=skip"
            ) from None
        self.skipped += 1
        self._first_problem = self._first_problem or f"; line {number}: {problem}"

    def _check(self, rows: int) -> None:
        """What can only be said of the whole file."""
        if not rows:
            raise TrntuneError(f"{self.path}: no usable row ({self.skipped} broken){self._first_problem}")
        context = self.columns.context
        if context is None:
            return
        if context != _DEFAULT_CONTEXT and not self._context_seen:
            raise TrntuneError(
                f"dataset.columns.context={context}: no row of {self.path} has this field "
                f"({_among(context, self._sizes)}); use null when there is no context"
            )
        if not self._sizes.get(context):
            self._refuse_lost_context()

    def _refuse_lost_context(self) -> None:
        """Where no row has a context: is there another field that looks like one?"""
        for name, share in self.unused.items():
            if _CONTEXTS & set(re.split(r"[^a-z]+", name.lower())):
                raise TrntuneError(
                    f"{self.path}: field {name!r} looks like a context and would be left out, {share:.1%} of the text; "
                    f"take it with dataset.columns.context={name}, or leave it out with dataset.columns.context=null"
                )


def read_jsonl(path: Path, columns: ColumnsConfig, on_bad_row: str) -> tuple[list[InstructionRow], int]:
    """All rows of a JSONL file that fits into memory, and how many were skipped. Raises as JsonLines."""
    lines = JsonLines(path, columns, on_bad_row)
    rows = [row for _, row in lines]
    return rows, lines.skipped


def read_at(path: Path, columns: ColumnsConfig, places: Sequence[tuple[int, int]]) -> list[InstructionRow]:
    """The rows at (byte offset, line number) of a file that was read before. Raises TrntuneError for one that is no
    row any more: the file has changed since."""
    try:
        with path.open("rb") as stream:
            return [_row_at(stream, columns, offset, line) for offset, line in places]
    except OSError as error:
        raise _unreadable(path, error) from None
    except BadRow:
        raise TrntuneError(f"{path} was changed while it was in use; start the run again") from None


def _row_at(stream: BinaryIO, columns: ColumnsConfig, offset: int, line: int) -> InstructionRow:
    stream.seek(offset)
    text = stream.readline()
    return _to_row(_parse(text.removeprefix(_BOM) if line == 1 else text), columns, line)


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
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits for Python
        raise BadRow(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise BadRow(f"a JSON object is wanted, not {type(record).__name__}")
    return record


def _to_row(record: dict[str, Any], columns: ColumnsConfig, line: int) -> InstructionRow:
    context = None if columns.context is None else record.get(columns.context)
    if context is not None and not isinstance(context, str):
        raise BadRow(f"field {columns.context!r} must be text, not {type(context).__name__}")
    return InstructionRow(
        instruction=_text(record, columns.instruction, "instruction"),
        context=_encodable(context or "", columns.context or ""),
        response=_text(record, columns.response, "response"),
        line=line,
    )


def _text(record: dict[str, Any], name: str, role: str) -> str:
    """The required text field ``name``."""
    if name not in record:
        raise BadRow(f"no field {name!r} ({_among(name, record)}); another name is dataset.columns.{role}=NAME")
    value = record[name]
    if not isinstance(value, str):
        raise BadRow(f"field {name!r} must be text, not {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"field {name!r} is empty")
    return _encodable(value, name)


def _among(name: str, fields: Iterable[str]) -> str:
    """The fields that there are, and the one most like ``name``."""
    there = list(fields)
    close = nearest(name, there)
    hint = f", nearest is {close!r}" if close else ""
    return f"there are: {', '.join(map(repr, there)) or 'none'}{hint}"


def _text_size(value: Any) -> int:
    """Characters of all text in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_text_size, value)) if isinstance(value, list) else 0


def _encodable(value: str, name: str) -> str:
    """``value``, unless it holds half a surrogate pair, which JSON can say and no tokenizer can read."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"field {name!r} holds a lone surrogate, which is no character") from None
    return value
