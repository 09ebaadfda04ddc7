"""The shape of a run's data without a model: what the plan needs to know of it, by the training stage's own steps.

Free of torch, and of transformers for plain prompts: a plan is made in seconds.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.schema import ColumnsConfig, Config
from trainer import fetch
from trainer.data.prepare import Row, prepare
from trainer.data.rows import read_jsonl
from trainer.data.tokenize import IGNORE

# Rows that are tokenized at most; the rest is taken to be like them (they are chosen by a hash, not by their place).
_MOST_ROWS = 5000


@dataclass(frozen=True)
class DataShape:
    """One epoch of training rows; ``measured`` of the data set's ``available`` rows were tokenized."""

    rows: int
    """packed or padded rows, whole global batches"""
    examples: float
    tokens: float
    """real ones"""
    trained: float
    """labels that the loss counts"""
    pairs: float
    """query/key pairs of causal attention inside the documents"""
    eval_rows: int
    measured: int
    available: int


class PlainTokenizer:
    """What trainer.data.tokenize needs of a tokenizer, from tokenizer.json alone."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_file(str(file))
        settings = file.with_name("tokenizer_config.json")
        eos = json.loads(settings.read_text(encoding="utf-8")).get("eos_token") if settings.is_file() else None
        text = eos["content"] if isinstance(eos, dict) else eos
        found = None if text is None else self.backend_tokenizer.token_to_id(text)
        # Any id will do where none is named: only lengths are wanted.
        self.eos_token_id = 0 if found is None else found


def measure(config: Config) -> DataShape | None:
    """The shape of the data when data set and tokenizer are on this machine, else None. Raises TrntuneError for broken
    data, as the run would."""
    data, tokenizer_file = fetch.dataset_at_hand(config.dataset), fetch.tokenizer_at_hand(config.model)
    if data is None or tokenizer_file is None:
        return None
    if config.dataset.prompt == "plain":
        tokenizer: Any = PlainTokenizer(tokenizer_file)
    else:
        from trainer.models.load import load_tokenizer

        tokenizer = load_tokenizer(tokenizer_file.parent)
    return shape_of(config, data, tokenizer)


def shape_of(config: Config, data: Path, tokenizer: Any) -> DataShape:
    """Tokenize and pack as the training stage does, at most a sample of the rows."""
    dataset = config.dataset
    columns = dataset.columns if dataset.source == "jsonl" or dataset.path else ColumnsConfig()
    there = len(read_jsonl(data, columns, dataset.on_bad_row)[0])
    wanted = min(there, dataset.max_samples or there)
    used = min(wanted, _MOST_ROWS + dataset.eval_samples)
    limited = dataclasses.replace(config, dataset=dataclasses.replace(dataset, max_samples=used))
    prepared = prepare(limited, data, tokenizer)
    factor = (wanted - len(prepared.held_out)) / (used - len(prepared.held_out))
    batch = config.training.global_batch_size
    filled = sum(1 for row in prepared.train if row)
    examples = [example for row in prepared.train for example in row]
    return DataShape(
        rows=-(-round(filled * factor) // batch) * batch,
        examples=len(examples) * factor,
        tokens=sum(len(example.input_ids) for example in examples) * factor,
        trained=trained_labels(prepared.train) * factor,
        pairs=sum(len(e.input_ids) * (len(e.input_ids) + 1) / 2 for e in examples) * factor,
        eval_rows=len(prepared.eval),
        measured=used,
        available=wanted,
    )


def trained_labels(rows: list[Row]) -> int:
    """Labels that the loss counts: the first token of a document is predicted by nothing."""
    return sum(label != IGNORE for row in rows for example in row for label in example.labels[1:])
