"""The formats that rows come in: which one it is, found from the columns of the first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.config.schema import ColumnsConfig, DatasetConfig
from launcher.data.files import template_fields
from launcher.errors import TrntuneError, first, nearest

SAMPLE = 100
"""Rows that are looked at."""
_MAX_NAMES = 40
_TURNS = ("messages", "conversations", "conversation")
_TEXT, _LIST = "text", "list"


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


def nested(dataset: DatasetConfig) -> tuple[str, ...]:
    """The names that may be paths to fields within fields, such as data.q."""
    fields = template_fields(dataset.prompt_template) if dataset.prompt_template else []
    return tuple(dict.fromkeys(name for name in (*asdict(dataset.columns).values(), *fields) if name and "." in name))


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
