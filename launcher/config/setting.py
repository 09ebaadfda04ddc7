"""One key of the schema: its default, what it means, and which values it takes."""

from __future__ import annotations

from dataclasses import field
from typing import Any

Number = int | float


def setting(
    default: Any,
    help: str,
    *,
    ge: Number | None = None,
    gt: Number | None = None,
    le: Number | None = None,
    lt: Number | None = None,
    choices: tuple[str, ...] | None = None,
    may_be_empty: bool = False,
    one_or_more: bool = False,
) -> Any:
    """A dataclass field with its help text, its default and what values it may take (None is checked by the type).

    ``may_be_empty``: of a text; others hold more than spaces. ``one_or_more``: of a field of type Any, which takes a
    text or a list of texts; OmegaConf has no type for that.
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices}
    metadata = {"help": help, **limits, "may_be_empty": may_be_empty, "one_or_more": one_or_more}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
