"""The rows that a run holds out, found without a tokenizer."""

from __future__ import annotations

import numpy as np

from launcher.schema import DatasetConfig
from trainer.data.rows import InstructionRow, JsonLines, read_at
from trainer.data.source import Source
from trainer.data.split import keys, split

_PLACED = np.dtype([("question", "<u8"), ("answer", "<u8"), ("offset", "<i8"), ("line", "<i8")])


def held_out_rows(source: Source, dataset: DatasetConfig, count: int | None = None) -> list[InstructionRow]:
    """The first ``count`` rows that training on ``source`` holds out. Raises TrntuneError for broken data."""
    lines = JsonLines(source.path, source.columns, source.on_bad_row)
    places = ((*keys(row, source.split_seed), offset, row.line) for offset, row in lines)
    found = np.fromiter(places, dtype=_PLACED)
    chosen = found[split(found, dataset.eval_samples, dataset.max_samples)[0][:count]]
    return read_at(source.path, source.columns, chosen[["offset", "line"]].tolist())
