"""Batches and steps: how many rows an epoch has, what they hold, and how many optimizer steps follow."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.architecture.attention_pairs import Extents, mean_pairs
from launcher.config.schema import Config
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


_measured: dict[str, Any] = {}


def measured(config: Config, extents: Extents = ()) -> Any:
    """trainer.probes.dataset's DataShape, or None; runs of a sweep that have the same data are measured once."""
    training = config.training
    key = repr((config.dataset, config.model, training.max_length, training.global_batch_size, config.seed, extents))
    if key not in _measured:
        _measured[key] = importlib.import_module("trainer.probes.dataset").measure(config, extents)
    return _measured[key]


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
