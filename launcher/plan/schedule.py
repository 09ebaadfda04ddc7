"""Batches and steps: how many rows an epoch has, what they hold, and how many optimizer steps follow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.architecture.attention_pairs import Extents, mean_pairs
from launcher.config.schema import Config
from launcher.errors import TrntuneError, UsageError
from launcher.jobs.helper_process import run_module
from launcher.plan.steps import total_steps

# Where nothing says better: half of an instruction example is its answer, and packed rows are nearly full.
ASSUMED_TRAINED = 0.5
ASSUMED_FILL = 0.97


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows. Counts may be fractions: they can come from a sample."""

    rows: int
    """rows of max_length positions, whole global batches"""
    filled: int
    """those of them that hold something"""
    examples: float
    tokens: float
    trained: float
    pairs: float
    eval_rows: float
    source: str
    """where the counts come from"""
    exact: bool
    """counted on all of the data, as the run will"""
    unused: Mapping[str, float] = field(default_factory=dict)
    """fields of the data that dataset.columns doesn't name, and their share of the text"""

    def padding_fraction(self, max_length: int) -> float:
        """Share of the positions that are padding."""
        return 1 - self.tokens / (self.rows * max_length)


@dataclass(frozen=True)
class Schedule:
    """The steps of a run; where the size of the data is not known, at most training.max_steps, or None."""

    steps_per_epoch: int | None
    steps: int | None


@dataclass(frozen=True)
class DataShape:
    """One epoch of training rows; ``measured`` of the data set's ``available`` rows were tokenized."""

    rows: int
    """packed or padded rows, whole global batches"""
    filled: int
    """those of them that hold something"""
    examples: float
    tokens: float
    """real ones"""
    trained: float
    """labels that the loss counts"""
    pairs: float
    """query/key pairs of causal attention inside the documents, as far as layers reach: the mean of the layers"""
    eval_rows: int
    measured: int
    available: int
    format: str
    """of the rows"""
    unused: dict[str, float]
    """fields that aren't read, and their share of the text"""


@dataclass(frozen=True)
class AtHand:
    """What of a run's data and model is on this machine."""

    shape: DataShape | None
    """None without the data set or the tokenizer"""
    tokenizer: Path | None
    """a file of it, beside the model's others"""


_measured: dict[str, AtHand] = {}


def at_hand(config: Config, extents: Extents = ()) -> AtHand:
    """What trainer.probes.dataset finds; runs of a sweep that have the same data are measured once. Raises UsageError
    or TrntuneError for broken data, as the run would."""
    training = config.training
    key = repr((config.dataset, config.model, training.max_length, training.global_batch_size, config.seed, extents))
    if key not in _measured:
        parts = {"model": asdict(config.model), "dataset": asdict(config.dataset), "training": asdict(training)}
        _measured[key] = _asked({**parts, "seed": config.seed, "extents": extents})
    return _measured[key]


def _asked(request: dict[str, Any]) -> AtHand:
    # What it says of the data is the user's to see, as it comes; a large data set takes its time.
    missing = "the plan doesn't look at the data"
    found = run_module("trainer.probes.dataset", json.dumps(request), missing, stderr=None, patient=True) or {}
    if "error" in found:
        kind = UsageError if found["exit_code"] == UsageError.exit_code else TrntuneError
        raise kind(found["error"])
    shape, tokenizer = found.get("shape"), found.get("tokenizer")
    return AtHand(None if shape is None else DataShape(**shape), None if tokenizer is None else Path(tokenizer))


def measured(config: Config, extents: Extents = ()) -> DataShape | None:
    """The shape of the data, or None where they are not on this machine."""
    return at_hand(config, extents).shape


def epoch(config: Config, extents: Extents = ()) -> Epoch | None:
    """Measured when the data and the tokenizer are on this machine, else from conf/dataset's facts, else None.
    ``extents``: how far each layer's attention reaches."""
    shape = measured(config, extents)
    if shape is None:
        return from_facts(config, extents)
    part = "" if shape.measured == shape.available else f" on {shape.measured:,} of {shape.available:,} rows"
    return Epoch(
        shape.rows,
        shape.filled,
        shape.examples,
        shape.tokens,
        shape.trained,
        shape.pairs,
        shape.eval_rows,
        f"measured on the data{part}, format {shape.format}",
        exact=not part,
        unused=shape.unused,
    )


def from_facts(config: Config, extents: Extents = ()) -> Epoch | None:
    """From dataset.rows and dataset.tokens_per_row."""
    dataset, length = config.dataset, config.training.max_length
    if dataset.rows is None or dataset.tokens_per_row is None:
        return None
    examples = min(dataset.rows, dataset.max_samples or dataset.rows) - dataset.eval_samples
    each = min(dataset.tokens_per_row, length)
    rows = math.ceil(examples * each / length / ASSUMED_FILL) if dataset.packing else examples
    batch = config.training.global_batch_size
    return Epoch(
        rows=math.ceil(rows / batch) * batch,
        filled=math.ceil(rows),
        examples=examples,
        tokens=examples * each,
        trained=examples * each * (1 if dataset.loss_on == "all" else ASSUMED_TRAINED),
        pairs=examples * mean_pairs(each, extents),
        eval_rows=dataset.eval_samples * (each / length / ASSUMED_FILL if dataset.packing else 1),
        source="estimated from dataset.rows and dataset.tokens_per_row",
        exact=False,
    )


def schedule(config: Config, data: Epoch | None) -> Schedule:
    """Steps by epochs, at most max_steps; the training stage counts them the same way."""
    if data is None:
        return Schedule(None, config.training.max_steps)
    return Schedule(data.rows // config.training.global_batch_size, total_steps(config, data.rows))


def evaluations(config: Config, steps: int) -> int:
    """How often the held-out rows are evaluated: before, after, and every eval_every steps (the last of which may be
    the one after)."""
    every = config.training.eval_every
    return 2 if every is None else 1 + math.ceil(steps / every)
