"""The formats that rows come in: which one it is, found from the columns of the first rows, and how one is read."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from launcher.config.schema import ColumnsConfig, DatasetConfig
from launcher.data.files import template_fields
from launcher.errors import TrntuneError, first, nearest
from trainer.data.conversations import conversation, turns
from trainer.data.rows import (
    BadRowError,
    InstructionRow,
    Parse,
    Row,
    Uses,
    among,
    encodable,
    instruction_rows,
    instruction_uses,
    looks_like_context,
    text_of,
)

SAMPLE = 100
"""Rows that are looked at."""
_MAX_NAMES = 40
_TURNS = ("messages", "conversations", "conversation")
_TEXT, _LIST = "text", "list"
# How to take a field that looks like a context.
_AS_INSTRUCTION = (
    "take it with dataset.format=instruction dataset.columns.response=output dataset.columns.context={name}"
)
_INTO_TEMPLATE = "write it as {{{name}}} into dataset.prompt_template"
_INTO_PROMPT = "write the prompt by a dataset.prompt_template that names it, {{{name}}}"
_INTO_TURNS = "write it into the turns of the prompt"


@dataclass(frozen=True)
class Found:
    """What the rows are."""

    format: str
    conversational: bool
    """written by the chat template, turn by turn"""
    columns: tuple[str, ...]
    """that are read"""
    given: bool
    """by dataset.format"""

    def __str__(self) -> str:
        how = "as dataset.format says" if self.given else f"found from the columns {', '.join(self.columns)}"
        return f"format {self.format}, {how}"


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


def nested(dataset: DatasetConfig) -> tuple[str, ...]:
    """The names that may be paths to fields within fields, such as data.q."""
    fields = template_fields(dataset.prompt_template) if dataset.prompt_template else []
    return tuple(dict.fromkeys(name for name in (*asdict(dataset.columns).values(), *fields) if name and "." in name))


def alpaca_columns() -> ColumnsConfig:
    """Alpaca's names of the three fields of an instruction row."""
    return ColumnsConfig(instruction="instruction", context="input", response="output")


def needed(columns: ColumnsConfig, fields: Sequence[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Format -> columns that each row of it has, with the kinds that their values may be of. ``fields``: those of
    dataset.prompt_template."""
    text: tuple[str, ...] = (_TEXT,)
    either: tuple[str, ...] = (_TEXT, _LIST)
    own = dict.fromkeys(fields, text)
    found: dict[str, dict[str, tuple[str, ...]]] = {
        "instruction": {**(own or {columns.instruction: text}), columns.response: text},
        "alpaca": {**(own or {"instruction": text}), "output": text},
        "prompt_completion": {**(own or {columns.prompt: either}), columns.completion: text if own else either},
    }
    if not own:
        found["text"] = {columns.text: text}
    return found


def find(records: Sequence[Mapping[str, Any]], dataset: DatasetConfig, where: str) -> Found:
    """The format of the rows whose first ``records`` are given. Raises TrntuneError where two fit, or none."""
    fields = template_fields(dataset.prompt_template) if dataset.prompt_template else []
    fitting = {name: columns for name, columns in _candidates(records, dataset, fields).items() if columns}
    if dataset.format is not None:
        return _given(dataset.format, fitting, records, dataset, fields)
    if len(fitting) > 1 and dataset.source != "files" and "instruction" in fitting:
        fitting = {"instruction": fitting["instruction"]}  # as it was before there were others
    if len(fitting) > 1:
        names = list(fitting)
        raise TrntuneError(
            f"{where}: its columns ({_named(records)}) fit {' and '.join(names)}; "
            f"say which by dataset.format={names[0]}"
        )
    if not fitting:
        if not records or (dataset.source != "files" and not fields):
            return _given("instruction", {}, records, dataset, fields, False)  # whose errors name file and line
        raise TrntuneError(_none(records, dataset.columns, fields, where))
    [(name, columns)] = fitting.items()
    return Found(name, _is_conversational(name, records, columns), columns, False)


def _given(
    name: str,
    fitting: Mapping[str, tuple[str, ...]],
    records: Sequence[Mapping[str, Any]],
    dataset: DatasetConfig,
    fields: Sequence[str],
    given: bool = True,
) -> Found:
    columns = fitting.get(name)
    if columns is None and name in ("messages", "sharegpt"):
        columns = (dataset.columns.messages or ("messages" if name == "messages" else "conversations"),)
    columns = columns or tuple(needed(dataset.columns, fields)[name])
    return Found(name, _is_conversational(name, records, columns), columns, given)


def _is_conversational(name: str, records: Sequence[Mapping[str, Any]], columns: tuple[str, ...]) -> bool:
    if name == "prompt_completion":
        return _most(records, lambda record: isinstance(record.get(columns[-1]), list))
    return name in ("messages", "sharegpt")


def _candidates(
    records: Sequence[Mapping[str, Any]], dataset: DatasetConfig, fields: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Format -> the columns by which the rows fit it; none where they don't."""
    found: dict[str, tuple[str, ...]] = {}
    for name, kinds in needed(dataset.columns, fields).items():
        fits = _most(records, lambda record, kinds=kinds: _fits(record, kinds))  # type: ignore[misc]
        found[name] = tuple(kinds) if fits else ()
    if not fields:
        names = (dataset.columns.messages,) if dataset.columns.messages else _TURNS
        for format_, key in (("messages", "role"), ("sharegpt", "from")):
            chosen = [name for name in names if _most(records, lambda r, n=name, k=key: _has_turns(r.get(n), k))]  # type: ignore[misc]
            found[format_] = tuple(chosen[:1])
    return found


def _most(records: Sequence[Mapping[str, Any]], test: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Whether it holds for more than half: a broken row must not change what the others are."""
    return 2 * sum(map(test, records)) > len(records)


def _fits(record: Mapping[str, Any], kinds: Mapping[str, tuple[str, ...]]) -> bool:
    return all(_kind(record.get(name)) in allowed for name, allowed in kinds.items())


def _kind(value: Any) -> str | None:
    return _TEXT if isinstance(value, str) else _LIST if isinstance(value, list) else None


def _has_turns(value: Any, key: str) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and value[0].get(key) is not None


def _named(records: Sequence[Mapping[str, Any]]) -> str:
    return first(list(dict.fromkeys(name for record in records for name in record)), _MAX_NAMES) or "none"


def _flat(record: Mapping[str, Any], whole: Collection[str]) -> dict[str, Any]:
    """A record with what its objects hold in fields of their own, by the path that a setting can name; fields named in
    ``whole`` stay what they are."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        inner = _flat(value, ()) if isinstance(value, Mapping) and value and name not in whole else {}
        found.update({f"{name}.{key}": each for key, each in inner.items()} or {name: value})
    return found


def _none(records: Sequence[Mapping[str, Any]], columns: ColumnsConfig, fields: Sequence[str], where: str) -> str:
    """What to say when no format fits: the columns that there are, and the format that lacks least."""
    wanted = dict(needed(columns, fields))
    if not fields:
        wanted.update({name: {column: (_LIST,)} for name, column in _TURNS_OF.items()})
    own = {name for each in wanted.values() for name in each}
    records = [_flat(record, own) for record in records]
    there = list(dict.fromkeys(name for record in records for name in record))
    if missing := [name for name in fields if name not in there]:
        near = nearest(missing[0], there)
        hint = f"; did you mean {{{near}}}?" if near else ""
        return f"{where}: dataset.prompt_template names {{{missing[0]}}}, and the columns are {_named(records)}{hint}"
    kinds = {name: _common_kind(records, name) for name in there}
    best = max(wanted, key=lambda name: _likeness(wanted[name], kinds))
    lacks = [each for each in wanted[best] if each not in there]
    why = f"which lacks {', '.join(lacks)}" if lacks else f"whose {', '.join(wanted[best])} are of another kind"
    return (
        f"{where}: its columns ({_named(records)}) fit no format; nearest is {best}, {why}; name yours by "
        "dataset.columns.NAME=COLUMN, or write the rows as docs/data.md says"
    )


_TURNS_OF = {"messages": "messages", "sharegpt": "conversations"}


def _common_kind(records: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """The kind that most values of a field have."""
    counts = Counter(_kind(record[name]) for record in records if name in record)
    return counts.most_common(1)[0][0]


def _likeness(wanted: Mapping[str, tuple[str, ...]], kinds: Mapping[str, str | None]) -> tuple[float, float, int]:
    """How near columns of these ``kinds`` come to those that a format has: by their names, by whether there are as many
    of the right kind, and by how many it would take up."""
    named = sum(_nearness(name, allowed, kinds) for name, allowed in wanted.items())
    taken, left = 0, list(kinds.values())
    for allowed in wanted.values():
        if (fit := next((kind for kind in left if kind in allowed), None)) is not None:
            left.remove(fit)
            taken += 1
    return named / len(wanted), taken / len(wanted), taken


def _nearness(name: str, allowed: tuple[str, ...], kinds: Mapping[str, str | None]) -> float:
    """Of a column to those that there are. One of a name that is only like it must be of the right kind."""
    if name in kinds:
        return 1.0 if kinds[name] in allowed else 0.8
    return 0.4 if nearest(name, [each for each, kind in kinds.items() if kind in allowed]) else 0.0


def parser(found: Found, dataset: DatasetConfig, columns: ColumnsConfig) -> Parse:
    """Reads rows of this format."""
    if found.format in ("messages", "sharegpt"):
        return _conversations(found, dataset)
    if dataset.prompt_template:
        return _own_prompt(dataset.prompt_template, found.columns[-1])
    if found.format == "prompt_completion":
        return _conversation_pairs(found, dataset) if found.conversational else _pairs(columns)
    if found.format == "text":
        return lambda record, line: TextRow(text_of(record, columns.text, "text"), line)
    return instruction_rows(alpaca_columns() if found.format == "alpaca" else columns)


def _refuse_tools(record: Mapping[str, Any]) -> None:
    if record.get("tools"):
        raise BadRowError("has 'tools', and calls of tools aren't trained on yet")


def _conversations(found: Found, dataset: DatasetConfig) -> Parse:
    name, sharegpt = found.columns[0], found.format == "sharegpt"

    def parse(record: dict[str, Any], line: int) -> Row:
        _refuse_tools(record)
        if name not in record:
            raise BadRowError(
                f"no field {name!r} (there are: {', '.join(map(repr, record)) or 'none'}); "
                "another name is dataset.columns.messages=NAME"
            )
        return conversation(turns(record[name], name, sharegpt), 0, dataset.thinking, line)

    return parse


def _conversation_pairs(found: Found, dataset: DatasetConfig) -> Parse:
    def parse(record: dict[str, Any], line: int) -> Row:
        _refuse_tools(record)
        asked, answer = (turns(record.get(name), name, False) for name in found.columns)
        return conversation([*asked, *answer], len(asked), dataset.thinking, line)

    return parse


def _pairs(columns: ColumnsConfig) -> Parse:
    def parse(record: dict[str, Any], line: int) -> Row:
        prompt = text_of(record, columns.prompt, "prompt")
        return PairRow(prompt, text_of(record, columns.completion, "completion"), line=line)

    return parse


class _Named(string.Formatter):
    """Fields by their whole names: a dot in one is no attribute."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs[field_name], field_name


def _own_prompt(template: str, answer: str) -> Parse:
    """Rows whose prompt dataset.prompt_template writes; the answer is in the column ``answer``."""
    fields = template_fields(template)

    def parse(record: dict[str, Any], line: int) -> Row:
        values = {name: _value(record, name) for name in fields}
        return PairRow(_Named().vformat(template, (), values), text_of(record, answer, "response"), True, line)

    return parse


def _value(record: Mapping[str, Any], name: str) -> str:
    """A field of the prompt; it may be empty."""
    if name not in record or not isinstance(record[name], str):
        missing = f"is missing ({among(name, record)})"
        what = f"must be text, not {type(record[name]).__name__}" if name in record else missing
        raise BadRowError(f"field {name!r}, which dataset.prompt_template names, {what}")
    return encodable(record[name], name)


def uses_of(found: Found, dataset: DatasetConfig, columns: ColumnsConfig) -> Uses:
    """The fields that this format reads, and what to do about a context that it has no place for."""
    fields = template_fields(dataset.prompt_template) if dataset.prompt_template else []
    if found.format == "instruction" and not fields:
        return instruction_uses(columns)
    if found.format in ("messages", "sharegpt", "text") or columns.context is None:
        return Uses((*found.columns, *(["input"] if found.format == "alpaca" and not fields else [])))
    if fields:
        like = (name for name in fields if looks_like_context(name) or name == columns.context)
        # The question is in the only field of a template.
        return Uses(found.columns, tuple(like) if len(fields) > 1 else (), None, _INTO_TEMPLATE)
    if found.format == "alpaca":
        return Uses((*found.columns, "input"), ("input",), None, _AS_INSTRUCTION)
    return Uses(found.columns, (), None, _INTO_TURNS if found.conversational else _INTO_PROMPT)


__all__ = ["Found", "InstructionRow", "PairRow", "TextRow", "find", "parser", "uses_of"]
