"""The shape of a run's data without a model: what the plan needs to know of it, by the training stage's own steps.

Free of torch, and of transformers for plain prompts: a plan is made in seconds.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError
from launcher.pairs import Extents
from launcher.schema import Config
from launcher.weights import vocabulary_fault
from trainer import fetch
from trainer.data.content import file_sha256
from trainer.data.corpus import Corpus, corpus_of, find_corpus
from trainer.data.prepare import prepare_corpus
from trainer.data.rows import Located
from trainer.data.source import Source
from trainer.data.split import keys

# Rows that are tokenized at most; the rest is taken to be like them (they are chosen by a hash, not by their place).
_MOST_ROWS = 5000


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


def measure(config: Config, extents: Extents = ()) -> DataShape | None:
    """The shape of the data when data set and tokenizer are on this machine, else None; ``extents``: how far each
    layer's attention reaches. Raises TrntuneError for broken data, as the run would."""
    data, tokenizer_file = fetch.dataset_at_hand(config.dataset), fetch.tokenizer_at_hand(config.model)
    if data is None or tokenizer_file is None:
        return None
    if (fault := vocabulary_fault(tokenizer_file.parent)) is not None:
        raise TrntuneError(f"{tokenizer_file.parent}: {fault}")
    source = Source.of(config, data)
    whole = tokenizer_file.name == "tokenizer.json"
    if whole and source.prompt == "plain" and not source.found.conversational:
        tokenizer: Any = PlainTokenizer(tokenizer_file)
    else:
        from trainer.models.load import run_tokenizer

        tokenizer = run_tokenizer(config, tokenizer_file.parent)
    return shape_of(config, data, tokenizer, extents)


def shape_of(config: Config, data: Path, tokenizer: Any, extents: Extents = ()) -> DataShape:
    """Pack as the training stage does: the whole set where a run has tokenized it, else at most a sample of the rows.
    Nothing is written."""
    found = find_corpus(config, data, tokenizer)
    if found is not None:
        corpus, there = dataclasses.replace(found, directory=None), _used(config, found)
        measured = there
    else:
        corpus, there = _sample(config, data, tokenizer)
        measured = len(corpus.rows)
    prepared = prepare_corpus(config, corpus)
    factor = (there - len(prepared.held_out)) / (measured - len(prepared.held_out))
    batch, sums = config.training.global_batch_size, prepared.train.sums(extents)
    filled = round(prepared.filled_rows * factor)
    return DataShape(
        rows=-(-filled // batch) * batch,
        filled=filled,
        examples=sums.examples * factor,
        tokens=sums.tokens * factor,
        trained=sums.trained * factor,
        pairs=sums.pairs * factor,
        eval_rows=len(prepared.eval),
        measured=measured,
        available=there,
        format=prepared.report.format,
        unused=prepared.report.unused,
    )


def _used(config: Config, corpus: Corpus) -> int:
    """How many rows of a corpus a run uses, held-out ones included."""
    rows, most, border = len(corpus.rows), config.dataset.max_samples, corpus.source.border
    own = 0 if border is None else int((corpus.rows["line"] >= border).sum())
    return min(rows - own, most or rows) + own


def _sample(config: Config, data: Path, tokenizer: Any) -> tuple[Corpus, int]:
    """The rows that a run with few samples would take, tokenized in memory, and how many the run itself takes. Of a
    held-out set of one's own all rows are taken."""
    source, most = Source.of(config, data), config.dataset.max_samples
    encoder = source.encoder(tokenizer)
    lines = source.lines(encoder)
    there = 0
    kept: list[tuple[int, int, int, Located]] = []
    own: list[Located] = []
    room = _MOST_ROWS + (config.dataset.eval_samples if source.border is None else 0)
    for offset, row in lines:
        if source.border is not None and row.line >= source.border:
            own.append((offset, row))
            continue
        there += 1
        question, answer = keys(row, source.split_seed)
        # The smallest hashes stay; numbers differ, so that rows are never compared.
        entry = (-question, -answer, -there, (offset, row))
        if len(kept) < min(room, most or there):
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    chosen = [located for *_, located in sorted(kept, key=lambda entry: -entry[2])]
    corpus = corpus_of([*chosen, *own], lines, source, encoder, file_sha256(data))
    return corpus, min(there, most or there) + len(own)
