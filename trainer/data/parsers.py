"""How a row of each format is read, and which of its fields are."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.config.schema import ColumnsConfig, DatasetConfig
from launcher.data.files import template_fields
from trainer.data.conversations import conversation, turns
from trainer.data.formats import Found
from trainer.data.rows import (
    BadRowError,
    PairRow,
    Parse,
    Row,
    TextRow,
    Uses,
    among,
    encodable,
    instruction_rows,
    instruction_uses,
    looks_like_context,
    text_of,
)

# How to take a field that looks like a context.
_AS_INSTRUCTION = (
    "take it with dataset.format=instruction dataset.columns.response=output dataset.columns.context={name}"
)


_INTO_TEMPLATE = "write it as {{{name}}} into dataset.prompt_template"


_INTO_PROMPT = "write the prompt by a dataset.prompt_template that names it, {{{name}}}"


_INTO_TURNS = "write it into the turns of the prompt"


def alpaca_columns() -> ColumnsConfig:
    """Alpaca's names of the three fields of an instruction row."""
    return ColumnsConfig(instruction="instruction", context="input", response="output")


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


def _check_tools(record: Mapping[str, Any]) -> None:
    if record.get("tools"):
        raise BadRowError("has 'tools', and calls of tools aren't trained on yet")


def _conversations(found: Found, dataset: DatasetConfig) -> Parse:
    name, sharegpt = found.columns[0], found.format == "sharegpt"

    def parse(record: dict[str, Any], line: int) -> Row:
        _check_tools(record)
        if name not in record:
            raise BadRowError(
                f"no field {name!r} (there are: {', '.join(map(repr, record)) or 'none'}); "
                "another name is dataset.columns.messages=NAME"
            )
        return conversation(turns(record[name], name, sharegpt), 0, dataset.thinking, line)

    return parse


def _conversation_pairs(found: Found, dataset: DatasetConfig) -> Parse:
    def parse(record: dict[str, Any], line: int) -> Row:
        _check_tools(record)
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
