"""Names of an adapter's tensors that are not those of its base: which renaming fits them, and what it does to them.

Adapters come with names of another model class (a multimodal one's ``language_model.``), without peft's
``base_model.model.``, or with an adapter's own name in them. Nothing is guessed while merging: a renaming is proposed,
and applied when it is asked for.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.architecture.adapters import ends, pattern_of
from launcher.errors import UsageError, first, nearest

PREFIX = "base_model.model."
_MAX_RULES = 6
_CONTEXT = 3  # parts of a name beside the changed one that a renaming may need to be told apart from others
# Where a name stops being a module's, and what may stand there in a file.
_TAIL = re.compile(
    r"\.(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|base_layer|original_module|modules_to_save|token_adapter"
    r"|weight|bias)(?:\.|$)"
)
_IN_FILES = re.compile(
    r"lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector|base_layer\.(?:weight|bias)"
    r"|(?:original_module|modules_to_save)\..+|token_adapter\.(?:trainable_tokens_delta|base_layer\.weight)|weight|bias"
)
_NAMED = re.compile(r"(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.(?!weight$|bias$)([^.]+)")
_ADAPTS = (".lora_A.", ".lora_embedding_A")


@dataclass(frozen=True)
class Rename:
    """``old`` becomes ``new`` at the first part of a name that begins with it; an empty ``old``: before the name."""

    old: str
    new: str

    def __call__(self, name: str) -> str:
        if not self.old:
            return self.new + name
        start = 0 if name.startswith(self.old) else name.find(f".{self.old}") + 1
        if not start and not name.startswith(self.old):
            return name
        return name[:start] + self.new + name[start + len(self.old) :]

    def __str__(self) -> str:
        return f"{self.old}={self.new}"


def parse_renames(texts: Iterable[str]) -> tuple[Rename, ...]:
    """OLD=NEW of a command line. Raises UsageError for anything else."""
    found = []
    for text in texts:
        old, separator, new = text.partition("=")
        if not separator or old == new:
            raise UsageError(
                f"--rename {text}: write OLD=NEW, such as layers.=model.layers. for names that lack model."
            )
        found.append(Rename(old, new))
    return tuple(found)


def add_rename(parser: argparse.ArgumentParser) -> None:
    """--rename, of every command that reads an adapter."""
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="another name for the adapter's tensors, such as layers.=model.layers.; may be given several times",
    )


def proposed(rules: Sequence[Rename]) -> str:
    """What to say of the renamings that fit."""
    return f"all of its tensors fit with {' '.join(f'--rename {rule}' for rule in rules)}"


def rename_all(names: Sequence[str], renames: Sequence[Rename]) -> dict[str, str]:
    """The names as they become, each with what it was. Raises UsageError for a renaming that no name has, and where two
    names become one."""
    current = list(names)
    for rename in renames:
        after = [rename(name) for name in current]
        if after == current:
            near = nearest(rename.old, current)
            example = f"they are such as {near or first(current, 1)}"
            raise UsageError(
                f"--rename {rename}: none of the adapter's tensors has {rename.old} in its name; {example}"
            )
        current = after
    found = dict(zip(current, names, strict=True))
    if len(found) < len(names):
        twice = next(name for name in current if current.count(name) > 1)
        raise UsageError(f"--rename {first([str(rename) for rename in renames])}: two of the tensors become {twice}")
    return found


def module_of(name: str) -> str:
    """The module that a tensor of an adapter belongs to, without peft's prefix."""
    short = name.removeprefix(PREFIX)
    match = _TAIL.search(short)
    return short[: match.start()] if match else short


def renamed_config(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """adapter_config.json for tensors with other names. ``names``: each name with what it was.

    Its own expressions are of the old names: what they say of each layer is asked by the old name and written down
    for the new one.
    """
    modules = {module_of(name): module_of(old) for name, old in names.items() if any(part in name for part in _ADAPTS)}
    saved = {module_of(name): module_of(old) for name, old in names.items()}
    result = {**config, "target_modules": sorted(modules), "exclude_modules": None}
    result |= {"layers_to_transform": None, "layers_pattern": None}
    for key in ("rank_pattern", "alpha_pattern"):
        patterns: Mapping[str, Any] = config.get(key) or {}
        values = {new: pattern_of(patterns, old) for new, old in modules.items()}
        result[key] = {re.escape(new): patterns[pattern] for new, pattern in values.items() if pattern is not None}
    keys = config.get("modules_to_save") or ()
    result["modules_to_save"] = [new for new, old in saved.items() if any(ends(old, key) for key in keys)] or None
    return result


def fitting(names: Iterable[str], modules: Collection[str]) -> tuple[Rename, ...]:
    """The renamings after which every tensor is one of ``modules``, the base's by their full names; none where all are
    already, and where there are no such."""
    current = [_without_numbers(name) for name in names]
    known = {_without_numbers(module) for module in modules}
    current = sorted(set(current))
    rules: list[Rename] = []
    while astray := [name for name in current if not _fits(name, known)]:
        proposals = {rule: [rule(name) for name in current] for rule in _proposals(astray[0], known)}
        counts = {rule: sum(_fits(name, known) for name in after) for rule, after in proposals.items()}
        right = [number for number, name in enumerate(current) if name not in astray]
        kept = {rule: all(_fits(after[number], known) for number in right) for rule, after in proposals.items()}
        best = max(counts, key=lambda rule: (kept[rule], counts[rule]), default=None)
        if best is None or counts[best] <= len(current) - len(astray) or len(rules) == _MAX_RULES:
            return ()
        rules.append(best)
        current = proposals[best]
    return tuple(rules)


def _without_numbers(name: str) -> str:
    """One name for all layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "0", name)


def _fits(name: str, modules: Collection[str]) -> bool:
    module = module_of(name)
    rest = name.removeprefix(f"{PREFIX}{module}.")
    return name.startswith(PREFIX) and module in modules and _IN_FILES.fullmatch(rest) is not None


def _proposals(name: str, modules: Collection[str]) -> Iterator[Rename]:
    """What could be done to a name that fits nothing, the shortest first."""
    named = _NAMED.search(name)
    if named:
        yield Rename(f"{named[1]}.{named[2]}", named[1])
    parts = [*(PREFIX.rstrip(".").split(".") if name.startswith(PREFIX) else ()), *module_of(name).split(".")]
    wanted = [[*PREFIX.rstrip(".").split("."), *module.split(".")] for module in modules]
    like = [other for other in wanted if other[-1] == parts[-1]]
    if not like:
        return
    other = max(like, key=lambda other: sum(_shared(parts, other)))
    before, after = _shared(parts, other)
    ends_at, ends_there = len(parts) - after, len(other) - after
    for left, right in sorted(((i, j) for i in range(_CONTEXT) for j in range(_CONTEXT)), key=sum):
        if left > before or right > after:
            continue
        old = parts[before - left : ends_at + right]
        new = other[before - left : ends_there + right]
        if (old or not before) and old != new:
            yield Rename(_dotted(old), _dotted(new))


def _dotted(parts: Sequence[str]) -> str:
    return "".join(f"{part}." for part in parts)


def _shared(one: Sequence[str], other: Sequence[str]) -> tuple[int, int]:
    """How many parts two names begin with alike, and how many of the others they end with alike."""
    shorter = min(len(one), len(other))
    before = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    left = shorter - before
    after = next((i for i in range(left) if one[-1 - i] != other[-1 - i]), left)
    return before, after
