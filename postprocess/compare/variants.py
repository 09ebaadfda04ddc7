"""Which runs may be compared, which are repeats of each other, and what a ratio is taken to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postprocess.compare.runs import Run, flatten, lookup

# All of these must agree before two runs are put into one ratio; so must all of `model.` and the result's hardware
# and libraries.
GROUP_KEYS = (
    "dataset.name",
    "dataset.columns.instruction",
    "dataset.columns.context",
    "dataset.columns.response",
    "dataset.weights",
    "dataset.prompt_template",
    "dataset.thinking",
    "dataset.control_tokens",
    "dataset.too_long",
    "dataset.max_samples",
    "dataset.eval_samples",
    "dataset.split_seed",
    "dataset.prompt",
    "dataset.loss_on",
    "dataset.packing",
    "dataset.on_bad_row",
    "training.global_batch_size",
    "training.max_length",
    "training.precision",
    "tracking.skip_steps",
)
# What a run had that was made before there was a choice.
_SETTINGS_SINCE: dict[str, Any] = {"dataset.weights": [], "dataset.too_long": "cut"}
_DATA_SINCE = {"format": "instruction", "template_sha256": None, "eval_line": None}
# Names and places, which change no number: what was read there stands in the result, by hash, format and columns.
_NO_DIFFERENCE = (
    "seed",
    "output_dir",
    "stages",
    "tracking.uri",
    "tracking.experiment",
    "tracking.run_name",
    "dataset.source",
    "dataset.path",
    "dataset.hub_id",
    "dataset.hub_file",
    "dataset.revision",
    "dataset.config",
    "dataset.split",
    "dataset.eval_path",
    "dataset.eval_split",
    "dataset.format",
    "dataset.chat_template",
    "dataset.columns.messages",
    "dataset.columns.prompt",
    "dataset.columns.completion",
    "dataset.columns.text",
    "accelerator.price_source",
    "accelerator.price_date",
    "method.learning_rate",  # only the default of training.learning_rate
)
# What only the plan reads.
_PLANNED = ("plan.", "accelerator.calibration", "dataset.rows", "dataset.tokens_per_row")
_CHOICES = ("method", "lora", "parallelism", "accelerator", "cluster")
_ABSENT = object()


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but the seed."""

    label: str
    """what distinguishes it in its group; unique there"""
    settings: dict[str, Any]
    """dotted keys that a run of the group may differ in"""
    runs: tuple[Run, ...]

    @property
    def is_full(self) -> bool:
        return bool(self.settings["method.name"] == "full")

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


@dataclass(frozen=True)
class Group:
    """Variants that may be put into one ratio."""

    agreed: dict[str, Any]
    """what all its runs have in common, of what must be common"""
    variants: tuple[Variant, ...]
    bases: dict[str, str]
    """label of each variant -> label of the one that it is a ratio to; a base's own base is itself"""

    @property
    def runs(self) -> list[Run]:
        return [run for variant in self.variants for run in variant.runs]

    def variant(self, label: str) -> Variant:
        return next(variant for variant in self.variants if variant.label == label)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Runs by everything that must agree, in the order in which they were given."""
    return [_group(agreed, members) for agreed, members in _partition(runs, must_agree)]


def must_agree(run: Run) -> dict[str, Any]:
    """Dotted keys and values that must be the same for two runs to be put into one ratio."""
    data = run.train["data"]
    result = {"definitions": run.train["definitions"], "data.sha256": data["sha256"]}
    result |= {f"data.{name}": data.get(name, value) for name, value in _DATA_SINCE.items()}
    model = flatten({"model": run.config["model"]})
    settings = {
        key: _SETTINGS_SINCE.get(key) if (value := lookup(run.config, key)) is None else value for key in GROUP_KEYS
    }
    # Runs of earlier versions don't say which libraries they had, which is another answer than any.
    had = {"hardware": run.train["hardware"], "libraries": run.train.get("libraries")}
    return {**result, **model, **settings, **flatten(had)}


def may_differ(run: Run) -> dict[str, Any]:
    """Dotted keys and values that make a variant. An adapter's settings mean nothing to full fine-tuning."""
    agreed = must_agree(run)
    full = run.config["method"]["name"] == "full"
    return {
        key: value
        for key, value in flatten(run.config).items()
        if key not in agreed
        and key not in _NO_DIFFERENCE
        and not key.startswith(_PLANNED)
        and not (full and key.startswith("lora."))
    }


def differences(one: Group, other: Group) -> list[tuple[str, Any, Any]]:
    """Keys that keep two groups apart, with the value in each."""
    keys = list({**one.agreed, **other.agreed})
    pairs = [(key, one.agreed.get(key), other.agreed.get(key)) for key in keys]
    found = [pair for pair in pairs if pair[1] != pair[2]]
    if any(key == "model.name" for key, _, _ in found):  # another model: its layers and heads say nothing more
        found = [pair for pair in found if not pair[0].startswith("model.") or pair[0] == "model.name"]
    return found


def shown_value(value: Any) -> str:
    """A setting as it is written on the command line; a hash is shortened."""
    if isinstance(value, list):
        return "+".join(shown_value(each) for each in value)
    if isinstance(value, str):
        return value[:12] if len(value) == 64 else value
    return "absent" if value is _ABSENT else json.dumps(value)


def _partition(runs: Iterable[Run], key: Any) -> list[tuple[dict[str, Any], list[Run]]]:
    found: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run in runs:
        values = key(run)
        found.setdefault(json.dumps(values, sort_keys=True, default=str), (values, []))[1].append(run)
    return list(found.values())


def _group(agreed: dict[str, Any], runs: Sequence[Run]) -> Group:
    parts = _partition(runs, may_differ)
    keys = swept_keys(parts)
    labels = _unique([_label(settings, keys) for settings, _ in parts])
    variants = tuple(
        Variant(label, settings, tuple(members)) for label, (settings, members) in zip(labels, parts, strict=True)
    )
    return Group(agreed, variants, choose_bases(variants, keys))


def swept_keys(parts: Sequence[tuple[dict[str, Any], list[Run]]]) -> list[str]:
    """Keys that tell the variants apart, without those that only follow from a group choice such as lora=dora."""
    settings = [each for each, _ in parts]
    keys = list({key: None for each in settings for key in each})
    found = [key for key in keys if _varies(key, settings)]
    rate = "training.learning_rate"
    if rate in keys and rate not in found and _varies(rate, settings, follows=False):
        # Each method has its own default, which is part of the choice; a rate that someone gave is not.
        given = any(run.config["method"].get("learning_rate") != each.get(rate) for each, (run, *_) in parts)
        found += [rate] if given else []
    return sorted(found, key=lambda key: (not key.startswith("method."), not key.startswith("lora.")))


def _varies(key: str, settings: Sequence[Mapping[str, Any]], follows: bool = True) -> bool:
    """Whether ``key`` differs between variants that made the same choice in its group."""
    choice = _choice_of(key) if follows else None
    seen: dict[str, set[str]] = {}
    for each in settings:
        if key.startswith("lora.") and key not in each:
            continue  # full fine-tuning
        value = each.get(key, _ABSENT)
        seen.setdefault(str(each.get(choice or "")), set()).add(shown_value(value))
    return any(len(values) > 1 for values in seen.values())


def _choice_of(key: str) -> str | None:
    """The key that names the choice which ``key`` may follow from, None for one that stands for itself."""
    if key == "training.learning_rate":
        return "method.name"
    group = key.partition(".")[0]
    return f"{group}.name" if group in _CHOICES and key != f"{group}.name" else None


def _label(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    parts = []
    for key in keys or ["method.name"]:
        if key.startswith("lora.") and key not in settings:
            continue
        group = key.partition(".")[0]
        name = group if key == f"{group}.name" else key
        parts.append(f"{name}={shown_value(settings.get(key, _ABSENT))}")
    return ", ".join(parts) or f"method={settings['method.name']}"


def _unique(labels: Sequence[str]) -> list[str]:
    """Labels with a number where two are the same: values may differ and yet be written alike, as null and "null"."""
    return [
        label if labels.count(label) == 1 else f"{label} ({labels[: index + 1].count(label)})"
        for index, label in enumerate(labels)
    ]


def choose_bases(variants: Sequence[Variant], keys: Sequence[str]) -> dict[str, str]:
    """For each variant, the full fine-tuning that shares most of the other swept values; the first of equals.

    Without full fine-tuning everything is a ratio to the first variant. Full fine-tunings that nothing else is a ratio
    to are themselves compared with the nearest one that is a base.
    """
    full = [variant for variant in variants if variant.is_full]
    if not full:
        return {variant.label: variants[0].label for variant in variants}
    others = [key for key in keys if not key.startswith(("method.", "lora."))]

    def closest(variant: Variant, candidates: Sequence[Variant]) -> str:
        return max(candidates, key=lambda each: _shared(variant, each, others)).label

    chosen = {variant.label: closest(variant, full) for variant in variants if not variant.is_full}
    used = [variant for variant in full if variant.label in chosen.values()] or full[:1]
    return chosen | {each.label: each.label if each in used else closest(each, used) for each in full}


def _shared(one: Variant, other: Variant, keys: Sequence[str]) -> int:
    return sum(one.settings.get(key) == other.settings.get(key) for key in keys)
