"""Instruction rows: one schema, read from JSON lines with every broken row named, and a fixed held-out split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError, nearest
from launcher.schema import ColumnsConfig

_DEFAULT_CONTEXT = ColumnsConfig().context


@dataclass(frozen=True)
class InstructionRow:
    """One example of the data set. ``context`` may be empty, the other two not."""

    instruction: str
    context: str
    response: str
    line: int = field(default=0, compare=False)
    """where it is in its file, from 1"""


class BadRow(Exception):
    """Why one row can't be used."""


def read_jsonl(path: Path, columns: ColumnsConfig, on_bad_row: str) -> tuple[list[InstructionRow], int]:
    """The rows of a JSONL file, and how many were skipped.

    Blank lines and a byte order mark are ignored. Raises TrntuneError that names file and line at the first broken
    row, unless ``on_bad_row`` is "skip", and when no row is left (then with what is wrong with the first).
    """
    rows: list[InstructionRow] = []
    skipped, first_problem, context_seen = 0, "", False
    for number, line in _lines(path):
        try:
            record = _parse(line)
            context_seen |= columns.context in record
            rows.append(_to_row(record, columns, number))
        except BadRow as problem:
            if on_bad_row == "stop":
                raise TrntuneError(
                    f"{path}:{number}: {problem}; fix the row, or leave such rows out with dataset.on_bad_row=skip"
                ) from None
            skipped += 1
            first_problem = first_problem or f"; line {number}: {problem}"
    if not rows:
        raise TrntuneError(f"{path}: no usable row ({skipped} broken){first_problem}")
    if columns.context not in (None, _DEFAULT_CONTEXT) and not context_seen:
        raise TrntuneError(
            f"dataset.columns.context={columns.context}: no row of {path} has this field; "
            "use null when there is no context"
        )
    return rows, skipped


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, as bytes: a line that is not UTF-8 must not hide the others."""
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield number, text
    except OSError as error:
        raise TrntuneError(f"{path}: can't be read: {error.strerror}; set dataset.path to a JSONL file") from None


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
        close = nearest(name, record)
        hint = f", nearest is {close!r}" if close else ""
        raise BadRow(
            f"no field {name!r} (there are: {', '.join(map(repr, record)) or 'none'}{hint}); "
            f"another name is dataset.columns.{role}=NAME"
        )
    value = record[name]
    if not isinstance(value, str):
        raise BadRow(f"field {name!r} must be text, not {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"field {name!r} is empty")
    return _encodable(value, name)


def _encodable(value: str, name: str) -> str:
    """``value``, unless it holds half a surrogate pair, which JSON can say and no tokenizer can read."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"field {name!r} holds a lone surrogate, which is no character") from None
    return value


def split(
    rows: list[InstructionRow], eval_samples: int, split_seed: int, max_samples: int | None
) -> tuple[list[InstructionRow], list[InstructionRow]]:
    """Training rows and held-out rows: the same whatever the file's order and the training seed.

    Rows are ordered by a hash of ``split_seed`` and the question; the first ``eval_samples`` are held out. Rows that
    ask the same (instruction and context) fall on one side, so that no held-out question was trained on.
    """

    def key(row: InstructionRow) -> bytes:
        return hashlib.sha256(f"{split_seed}\0{row.instruction}\0{row.context}".encode()).digest()

    ordered = sorted(rows, key=lambda row: (key(row), row.response))[:max_samples]
    border = eval_samples
    while 0 < border < len(ordered) and key(ordered[border]) == key(ordered[border - 1]):
        border += 1
    if border >= len(ordered):
        raise TrntuneError(
            f"dataset.eval_samples={eval_samples}: only {len(ordered)} rows, so none is left to train on; "
            "hold out fewer or use more rows"
        )
    return ordered[border:], ordered[:border]
