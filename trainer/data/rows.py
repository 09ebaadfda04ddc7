"""The rows of every format, what is common to them, and how an instruction row, the first of them, is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from launcher.config.schema import ColumnsConfig
from launcher.errors import nearest

# Words in the names of fields that hold what an instruction is about, such as Alpaca's input.
_CONTEXTS = frozenset(
    (
        *("context", "contexts", "input", "inputs", "passage", "passages", "document", "documents", "paragraph"),
        *("paragraphs", "article", "background", "excerpt", "evidence", "knowledge"),
    )
)


class Row(Protocol):
    """One example of the data set: what is common to the formats."""

    @property
    def instruction(self) -> str:
        """What is asked, for people."""

    @property
    def context(self) -> str:
        """What was given with it; may be empty."""

    @property
    def response(self) -> str:
        """The right answer; empty where nothing is asked."""

    @property
    def line(self) -> int:
        """Where it is in its file, from 1."""

    def hashed(self) -> tuple[str, str]:
        """Question and answer, by whose hashes rows are held out and told apart."""


@dataclass(frozen=True)
class InstructionRow:
    """One example of the data set. ``context`` may be empty, the other two not."""

    instruction: str
    context: str
    response: str
    line: int = field(default=0, compare=False)
    """where it is in its file, from 1"""

    def hashed(self) -> tuple[str, str]:
        return f"{self.instruction}\0{self.context}", self.response


@dataclass(frozen=True)
class PairRow:
    """A prompt and what follows it, both exactly as they are trained on."""

    prompt: str
    completion: str
    own_prompt: bool = False
    """written by dataset.prompt_template"""
    line: int = field(default=0, compare=False)

    @property
    def instruction(self) -> str:
        return self.prompt

    @property
    def context(self) -> str:
        return ""

    @property
    def response(self) -> str:
        return self.completion

    def hashed(self) -> tuple[str, str]:
        return self.prompt, self.completion


@dataclass(frozen=True)
class TextRow:
    """A text, every token of which is trained on."""

    text: str
    line: int = field(default=0, compare=False)

    @property
    def instruction(self) -> str:
        return self.text

    @property
    def context(self) -> str:
        return ""

    @property
    def response(self) -> str:
        return ""

    def hashed(self) -> tuple[str, str]:
        return self.text, ""


Located = tuple[int, Row]
"""Byte offset of a row's line, and the row."""
Parse = Callable[[dict[str, Any], int], Row]
"""From a record and its line to a row. Raises BadRowError."""


class BadRowError(Exception):
    """Why one row can't be used."""


@dataclass(frozen=True)
class Uses:
    """The fields that a format reads."""

    names: tuple[str, ...]
    contexts: tuple[str, ...] = ()
    """those among them that hold what a question is about"""
    wanted: str | None = None
    """the context that dataset.columns.context names: a misspelling where no row has it"""
    remedy: str | None = None
    """how to take a field {name} that looks like a context, where no context is read; None: it is only told of"""


def instruction_uses(columns: ColumnsConfig) -> Uses:
    """What an instruction row is read from."""
    context = columns.context
    if context is None:
        return Uses((columns.instruction, columns.response))
    remedy = "take it with dataset.columns.context={name}"
    return Uses((columns.instruction, context, columns.response), (context,), context, remedy)


def looks_like_context(name: str) -> bool:
    """Whether a field's name has a word in it that says that it holds what a question is about."""
    return bool(_CONTEXTS & set(re.split(r"[^a-z]+", name.lower())))


def instruction_rows(columns: ColumnsConfig) -> Parse:
    """Reads instruction rows whose fields have these names."""

    def parse(record: dict[str, Any], line: int) -> InstructionRow:
        return _to_row(record, columns, line)

    return parse


def _to_row(record: dict[str, Any], columns: ColumnsConfig, line: int) -> InstructionRow:
    context = None if columns.context is None else record.get(columns.context)
    if context is not None and not isinstance(context, str):
        raise BadRowError(f"field {columns.context!r} must be text, not {type(context).__name__}")
    return InstructionRow(
        instruction=text_of(record, columns.instruction, "instruction"),
        context=encodable(context or "", columns.context or ""),
        response=text_of(record, columns.response, "response"),
        line=line,
    )


def text_of(record: dict[str, Any], name: str, role: str) -> str:
    """The required text field ``name``, which dataset.columns.``role`` names. Raises BadRowError."""
    if name not in record:
        raise BadRowError(f"no field {name!r} ({among(name, record)}); another name is dataset.columns.{role}=NAME")
    value = record[name]
    if not isinstance(value, str):
        raise BadRowError(f"field {name!r} must be text, not {type(value).__name__}")
    if not value.strip():
        raise BadRowError(f"field {name!r} is empty")
    return encodable(value, name)


def among(name: str, fields: Iterable[str]) -> str:
    """The fields that there are, and the one most like ``name``; of a path those where it ends."""
    there = list(fields)
    first, _, rest = name.partition(".")
    if rest and first in there and isinstance(fields, dict):
        inside = fields[first]
        if isinstance(inside, dict):
            return f"in {first!r} {among(rest, inside)}"
        return f"{first!r} is no object, but {type(inside).__name__}"
    close = nearest(name, there)
    hint = f", nearest is {close!r}" if close else ""
    return f"there are: {', '.join(map(repr, there)) or 'none'}{hint}"


def encodable(value: str, name: str) -> str:
    """``value``, unless it holds half a surrogate pair, which JSON can say and no tokenizer can read."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRowError(f"field {name!r} holds a lone surrogate, which is no character") from None
    return value
