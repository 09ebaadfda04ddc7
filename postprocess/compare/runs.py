"""One run as the report sees it, from the three texts that a run directory and MLflow both hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import yaml

from launcher.run_dir.result import COMPLETE

CONFIG, TRAIN, METRICS = "config.yaml", "train.json", "metrics.jsonl"
FILES = (CONFIG, TRAIN, METRICS)

# Without these no one can tell whether two runs may be put into one ratio.
_NEEDED_RESULTS = ("status", "definitions", "steps", "data.sha256", "hardware")
_NEEDED_SETTINGS = ("method.name", "model.name", "dataset.name", "seed")


@dataclass(frozen=True)
class Evaluation:
    """A held-out loss and what had been consumed until then, over all replicas."""

    step: int
    loss: float
    """nats a trained token"""
    tokens: float
    trained_tokens: float
    train_seconds: float
    """time of the optimizer steps alone"""


@dataclass(frozen=True)
class Run:
    """A run that finished its training stage."""

    name: str
    """its directory as the user would type it, or its name and id in MLflow"""
    config: dict[str, Any]
    train: dict[str, Any]
    """stages/train.json; the names are those of docs/measurement.md"""
    evaluations: tuple[Evaluation, ...]
    """by step"""

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def price(self) -> float | None:
        """US dollars an hour of one instance; None when no price is configured."""
        found: float | None = lookup(self.config, "accelerator.price_usd_per_hour")
        return found

    def cost_usd(self, seconds: float) -> float | None:
        """Of all its instances for ``seconds`` (definitions 1 counted one); None without a price."""
        return None if self.price is None else int(self.train.get("instances", 1)) * self.price * seconds / 3600


@dataclass(frozen=True)
class Excluded:
    """A run that is in no ratio, and why."""

    name: str
    reason: str


@dataclass
class Collection:
    """All that was found: nothing that was asked for is left out without a reason."""

    runs: list[Run] = field(default_factory=list)
    excluded: list[Excluded] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, found: Run | Excluded) -> None:
        if isinstance(found, Run):
            self.runs.append(found)
        else:
            self.excluded.append(found)


class _Unreadable(Exception):
    """Why a run cannot be used."""


def parse_run(name: str, texts: Mapping[str, str]) -> Run | Excluded:
    """The run from its three texts (FILES), or why it is in no ratio."""
    try:
        config, train = _config(texts[CONFIG]), _train(texts[TRAIN])
        if train["status"] not in COMPLETE:
            return Excluded(name, f"{train['status']} after {train['steps']} steps")
        if train.get("weights_changed") is False:
            return Excluded(name, f"its {train['steps']} steps changed none of the trained weights")
        return Run(name, config, train, _evaluations(texts[METRICS]))
    except _Unreadable as error:
        return Excluded(name, str(error))


def lookup(values: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key, None where there is none."""
    value: Any = values
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys, in the same order."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value})
    return flat


def is_number(value: Any) -> TypeGuard[float]:
    """True for finite numbers; JSON's true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _config(text: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _Unreadable(f"{CONFIG} is not YAML") from error
    return _with_needed(config, _NEEDED_SETTINGS, CONFIG)


def _train(text: str) -> dict[str, Any]:
    return _with_needed(_json(text, TRAIN), _NEEDED_RESULTS, TRAIN)


def _with_needed(values: Any, needed: tuple[str, ...], file: str) -> dict[str, Any]:
    missing = [key for key in needed if not isinstance(values, dict) or lookup(values, key) is None]
    if missing:
        raise _Unreadable(f"{file} has no {missing[0]}: it is damaged, or from an older version; run it again")
    checked: dict[str, Any] = values
    return checked


def _json(text: str, where: str) -> Any:
    try:
        # A diverged run may have written NaN, which JSON does not know: it counts as not measured.
        return json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise _Unreadable(f"{where} is not JSON") from error


def _evaluations(text: str) -> tuple[Evaluation, ...]:
    """The `event=eval` lines; of several for one step, which a continued run leaves, the last."""
    found: dict[int, Evaluation] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        record = _json(line, f"{METRICS}:{number}")
        if isinstance(record, dict) and record.get("event") == "eval" and is_number(record.get("eval_loss")):
            found[record["step"]] = _evaluation(record, f"{METRICS}:{number}")
    return tuple(found[step] for step in sorted(found))


def _evaluation(record: dict[str, Any], where: str) -> Evaluation:
    for key in ("step", "tokens", "trained_tokens", "train_seconds"):
        if not is_number(record.get(key)):
            raise _Unreadable(f"{where} has no {key}: it is damaged, or from an older version; run it again")
    return Evaluation(
        record["step"], record["eval_loss"], record["tokens"], record["trained_tokens"], record["train_seconds"]
    )
