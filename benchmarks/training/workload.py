"""The rows that every framework trains on: instruction data, tokenized once, by this project."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.errors import UsageError
from trainer.data.packed import Row
from trainer.data.packing import pack
from trainer.data.rows import InstructionRow
from trainer.data.tokenize import Example, tokenize


@dataclass(frozen=True)
class TokenFile:
    """The written rows."""

    path: Path
    samples: int
    tokens: int
    trained: int
    pairs: float
    """causal query/key pairs"""


def write_tokens(
    rows: list[InstructionRow], tokenizer: Any, path: Path, samples: int, max_length: int, rows_per_step: int
) -> TokenFile:
    """Tokenize up to ``samples`` rows, as many as fill whole steps of packed rows, into JSON lines.

    In a data set of benchmark size the last step's padding would weigh more than it does in a real one.
    """
    examples = tokenize(rows[: 2 * samples], "plain", "response", max_length, tokenizer).examples[:samples]
    while examples and len(packed(examples, max_length)) % rows_per_step:
        examples = examples[:-1]
    if not examples:
        raise UsageError(f"--samples {samples}: they don't fill a step of {rows_per_step} rows of {max_length} tokens")
    lines = [json.dumps({"input_ids": example.input_ids, "labels": example.labels}) for example in examples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return _described(path, examples)


def packed(examples: list[Example], max_length: int) -> list[Row]:
    """The examples in rows, as a run packs them."""
    members, ends = pack([len(each.input_ids) for each in examples], max_length)
    return [[examples[place] for place in group] for group in np.split(members, ends[:-1])]


def _described(path: Path, examples: list[Example]) -> TokenFile:
    lengths = [len(example.input_ids) for example in examples]
    trained = sum(label != -100 for example in examples for label in example.labels[1:])
    return TokenFile(path, len(examples), sum(lengths), trained, sum(n * (n + 1) / 2 for n in lengths))
