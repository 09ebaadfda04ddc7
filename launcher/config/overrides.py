"""Overrides are looked at before Hydra composes them, so that every refusal names the key and the nearest one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, get_origin

from launcher.config.fields import keys, nodes
from launcher.config.secrets import ADVICE, looks_like_token
from launcher.errors import UsageError, nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_SHORT = {
    "plan=true": "plan.show=true",
    "plan=false": "plan.show=false",
    "lora.target_modules=all-linear": "lora.target_modules=[all-linear]",
}
# Choices of a group, or an empty list when there is no such group.
GroupOptions = Callable[[str], list[str]]


def expand(arguments: Iterable[str]) -> list[str]:
    """``plan=true`` is short for ``plan.show=true``: plan itself is a group of keys. peft's word for all linear layers
    stands for a list."""
    return [_SHORT.get(line, line) for line in arguments]


def open_mapping(line: str) -> str:
    """An override in Hydra's way to add keys, where the schema has a mapping with any names: Hydra's own way to set it
    takes the names for keys of the schema."""
    return f"++{line}" if is_mapping(line.partition("=")[0]) else line


def is_mapping(path: str) -> bool:
    """Whether the schema has a mapping with any names at this dotted path."""
    key = keys().get(path)
    return key is not None and get_origin(key.type) is dict


def check_arguments(arguments: Iterable[str]) -> None:
    """Raise UsageError, without echoing it, when an argument holds an access token."""
    for argument in arguments:
        if looks_like_token(argument):
            name, separator, _ = argument.partition("=")
            where = name if separator and not looks_like_token(name) else "an argument"
            raise UsageError(f"{where} holds what looks like an access token: {ADVICE}")


def suggestion(name: str, allowed: Iterable[str]) -> str:
    """ "; did you mean X?", or nothing when no name is close."""
    near = nearest(name, allowed)
    return f"; did you mean {near}?" if near else ""


def unknown_key(key: str, groups: Iterable[str]) -> str:
    """The message for a key that the schema does not have: the whole path first, then its last part in its group."""
    if key.startswith("hydra."):
        return f"unknown key {key}; --cfg hydra shows Hydra's keys"
    near = nearest(key, [*keys(), *groups])
    parent, _, leaf = key.rpartition(".")
    siblings = [name for name in keys() if name.rpartition(".")[0] == parent] if parent in nodes() else []
    if siblings:
        near_leaf = nearest(leaf, [name.rpartition(".")[2] for name in siblings])
        near = f"{parent}.{near_leaf}" if near_leaf else near
        listed = ", ".join(name.rpartition(".")[2] for name in siblings)
        return f"unknown key {key}" + (f"; did you mean {near}?" if near else f"; {parent} has {listed}")
    if near is None:
        ends = [name for name in keys() if name.rpartition(".")[2] == leaf]
        near = ends[0] if ends else None
    return f"unknown key {key}" + (f"; did you mean {near}?" if near else "; --help lists the keys")


def unknown_choice(group: str, choice: str, options: list[str]) -> str:
    """The message for a choice that the group does not have."""
    allowed = f"allowed are {', '.join(options)}" if options else f"conf/{group} is empty"
    return f"{group}={choice}: no such choice: {allowed}{suggestion(choice, options)}"


def shell_form(line: str) -> str | None:
    """What to type in a shell for an override of a text whose value Hydra's grammar would not read, or read otherwise:
    the value in Hydra's quotes, all in the shell's. None for a key that is no text, and for a list."""
    name, _, value = line.partition("=")
    key = keys().get(name)
    if key is None or not (key.type is str or key.one_or_more) or value.startswith("[") or "${" in value:
        return None
    # Only a quote is escaped there, and the backslashes that stand before one.
    inside = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', r"\""), value)
    return shlex.quote(f'{name}="{inside}"')


def check_choice(override: Override, options: list[str]) -> None:
    """Raise UsageError unless every choice that the override names for its group exists."""
    group = override.key_or_group
    values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
    for value in values:
        for choice in value if isinstance(value, list) else [value]:
            if choice is None and group == "experiment":
                continue
            if not isinstance(choice, str):
                raise UsageError(unknown_choice(group, "null" if choice is None else str(choice), options))
            if choice not in options and "${" not in choice:
                raise UsageError(unknown_choice(group, choice, options))


def check_sign(override: Override, known: bool) -> None:
    """Raise UsageError for +key, ++key and ~key: the schema is closed, so that nothing can be added or taken away."""
    line, key = override.input_line, override.key_or_group
    if override.is_delete():
        raise UsageError(f"{line}: {key} cannot be deleted, every run has one; choose another value: {key}=...")
    if override.is_add() or override.is_force_add():
        if known:
            raise UsageError(f"{line}: {key} exists already; write it without the plus: {str(line).lstrip('+')}")
        raise UsageError(f"{line}: keys cannot be added; " + unknown_key(key, ()))


def check_boolean(override: Override) -> None:
    """Raise UsageError for a number at a true/false key: OmegaConf would take 5 for true."""
    key = keys().get(override.key_or_group)
    if key and key.type is bool and not override.is_sweep_override() and type(override.value()) in (int, float):
        raise UsageError(f"{override.input_line}: must be {key.type_name}")


def check_override(override: Override, groups: list[str], options: GroupOptions) -> None:
    """Raise UsageError for a key or a group's choice that does not exist. Hydra's own keys are left to Hydra."""
    if override.is_hydra_override() or (override.key_or_group or "").startswith("hydra"):
        return
    key = override.key_or_group
    choices = options(key)
    known = key in keys() or key in nodes() or bool(choices) or key in groups
    check_sign(override, known)
    if override.package is not None:
        raise UsageError(f"{override.input_line}: a group has one place here; write {key}=... without @")
    if key in groups or choices:
        check_choice(override, choices)
    elif not known:
        raise UsageError(unknown_key(key, groups))
    check_boolean(override)
