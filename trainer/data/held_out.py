"""The rows that a run holds out, found without a tokenizer."""

from __future__ import annotations

import numpy as np

from launcher.config.schema import DatasetConfig
from trainer.data.encoder import Encoder
from trainer.data.rows import Row
from trainer.data.source import Source
from trainer.data.split import keys, sides

_PLACED = np.dtype([("question", "<u8"), ("answer", "<u8"), ("offset", "<i8"), ("line", "<i8")])


def held_out_rows(
    source: Source, dataset: DatasetConfig, count: int | None = None, encoder: Encoder | None = None
) -> list[Row]:
    """The first ``count`` rows that training on ``source`` holds out. Raises TrntuneError for broken data. ``encoder``:
    of the run, needed where rows that it can't write were skipped."""
    places = ((*keys(row, source.split_seed), offset, row.line) for offset, row in source.lines(encoder))
    found = np.fromiter(places, dtype=_PLACED)
    chosen = found[sides(found, dataset, source.border)[0][:count]]
    return source.read_at(chosen[["offset", "line"]].tolist())
