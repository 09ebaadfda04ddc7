"""Every key of the schema with its type, default and limits; and the check of one value against them."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from launcher.config.schema import Config

_root: ContextVar[type] = ContextVar("root", default=Config)

TYPE_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
_CONTAINERS: dict[Any, str] = {list: "a list such as [a,b]", dict: "a mapping such as {a:1}"}


@dataclass(frozen=True)
class Key:
    """One leaf of the configuration."""

    path: str
    type: Any
    optional: bool
    default: Any
    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[str, ...] | None = None
    may_be_empty: bool = False
    one_or_more: bool = False

    @property
    def type_name(self) -> str:
        """The type in words: "an integer or null"."""
        if self.one_or_more:
            return "a string, a list such as [a,b], or null"
        name = _CONTAINERS.get(get_origin(self.type)) or TYPE_NAMES[self.type]
        return f"{name} or null" if self.optional else name

    @property
    def allowed(self) -> str:
        """The limits in words; empty where every value of the type will do."""
        if self.choices:
            return ", ".join(self.choices)
        signs = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {limit:g}" for sign, limit in signs if limit is not None)


def unwrap_optional(annotation: Any) -> tuple[Any, bool]:
    """The type inside Optional, and whether it was one."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    inner = [member for member in get_args(annotation) if member is not type(None)]
    return inner[0], True


def field_default(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass field; a missing one is OmegaConf's "???"."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def walk(cls: type, prefix: str = "") -> Iterator[Key]:
    """Leaves of a dataclass in the order of their declaration."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, optional = unwrap_optional(hints[field.name])
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from walk(kind, f"{prefix}{field.name}.")
        elif field.metadata.get("one_or_more"):
            yield Key(f"{prefix}{field.name}", list[str], True, field_default(field), **field.metadata)
        else:
            yield Key(f"{prefix}{field.name}", kind, optional, field_default(field), **field.metadata)


@contextmanager
def schema_of(root: type) -> Iterator[None]:
    """Inside, ``keys`` and ``nodes`` are those of ``root``: what the project's other commands are configured by."""
    token = _root.set(root)
    try:
        yield
    finally:
        _root.reset(token)


def root() -> type:
    """The dataclass of the whole configuration."""
    return _root.get()


def keys() -> dict[str, Key]:
    """Every leaf of the configuration by its dotted path."""
    return _keys(root())


def nodes() -> frozenset[str]:
    """Dotted paths of the inner nodes: model, model.wheel, ..."""
    return _nodes(root())


def node_type(path: str) -> type:
    """The dataclass of an inner node."""
    found = root()
    for name in path.split("."):
        found = unwrap_optional(get_type_hints(found)[name])[0]
    return found


@functools.cache
def _keys(root: type) -> dict[str, Key]:
    return {key.path: key for key in walk(root)}


@functools.cache
def _nodes(root: type) -> frozenset[str]:
    return frozenset(path.rsplit(".", depth)[0] for path in _keys(root) for depth in range(1, path.count(".") + 1))


def lookup(config: Any, path: str) -> Any:
    """The value at a dotted path of a typed configuration; None below a node that is null."""
    for name in path.split("."):
        config = None if config is None else getattr(config, name)
    return config


def error_message(key: Key, value: Any) -> str | None:
    """Why ``value`` of the right type is not allowed at ``key``, or None. NaN and infinity never are; of a list or a
    mapping each number is looked at."""
    if value is None:
        return None
    if key.one_or_more and not _one_or_more(value):
        return "must be a text or a list of texts such as [a,b], none of them empty"
    if isinstance(value, list | dict):
        numbers = (each for each in (value.values() if isinstance(value, dict) else value) if not isinstance(each, str))
        return next((why for each in numbers if (why := error_message(key, each))), None)
    if isinstance(value, str) and not value.strip() and not key.may_be_empty:
        return "must not be empty" + ("; null leaves it out" if key.optional else "")
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if key.choices and value not in key.choices:
        return f"must be one of {key.allowed}"
    limits: tuple[tuple[float | None, Any], ...] = (
        (key.ge, lambda limit: value >= limit),
        (key.gt, lambda limit: value > limit),
        (key.le, lambda limit: value <= limit),
        (key.lt, lambda limit: value < limit),
    )
    if all(limit is None or holds(limit) for limit, holds in limits):
        return None
    return f"must be {key.allowed}"


def _one_or_more(value: Any) -> bool:
    texts = value if isinstance(value, list) and value else [value]
    return all(isinstance(text, str) and text.strip() for text in texts)
