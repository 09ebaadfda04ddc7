"""The shape of a run's data without a model: what the plan needs to know of it, by the training stage's own steps.

`python -m trainer.probes.dataset REQUEST` prints JSON: the plan starts it as a process of its own. Free of torch, and
of transformers for plain prompts: a plan is made in seconds.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from launcher.architecture.attention_pairs import Extent, Extents
from launcher.config.schema import Config, DatasetConfig, ModelConfig, TrainingConfig
from launcher.errors import FAILED, TrntuneError, disk_fault
from launcher.model_dir.weights import vocabulary_fault
from launcher.plan.schedule import DataShape
from trainer.data.content import file_sha256
from trainer.data.corpus import Corpus, corpus_of, find_corpus
from trainer.data.prepare import prepare_corpus
from trainer.data.rows import Located
from trainer.data.source import Source
from trainer.data.split import keys
from trainer.fetch import sources

# Rows that are tokenized at most; the rest is taken to be like them (they are chosen by a hash, not by their place).
_MAX_ROWS = 5000


class PlainTokenizer:
    """What trainer.data.encoder needs of a tokenizer, from tokenizer.json alone."""

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
    data, tokenizer_file = sources.dataset_at_hand(config.dataset), sources.tokenizer_at_hand(config.model)
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
        measured, own = there, _own(found)
    else:
        corpus, there, own = _sample(config, data, tokenizer)
        measured = len(corpus.rows)
    prepared = prepare_corpus(config, corpus)
    held_out = len(prepared.held_out)
    factor = (there - (own or held_out)) / (measured - held_out)
    batch, sums = config.training.global_batch_size, prepared.train.sums(extents)
    filled = round(prepared.filled_rows * factor)
    return DataShape(
        rows=-(-filled // batch) * batch,
        filled=filled,
        examples=sums.examples * factor,
        tokens=sums.tokens * factor,
        trained=sums.trained * factor,
        pairs=sums.pairs * factor,
        eval_rows=round(len(prepared.eval) * (own or held_out) / held_out),
        measured=measured,
        available=there,
        format=prepared.report.format,
        unused=prepared.report.unused,
    )


def _used(config: Config, corpus: Corpus) -> int:
    """How many rows of a corpus a run uses, held-out ones included."""
    rows, most, own = len(corpus.rows), config.dataset.max_samples, _own(corpus)
    return min(rows - own, most or rows) + own


def _own(corpus: Corpus) -> int:
    """The rows of a held-out set of one's own."""
    border = corpus.source.border
    return 0 if border is None else len(corpus.rows) - int(np.searchsorted(corpus.rows["line"], border))


def _sample(config: Config, data: Path, tokenizer: Any) -> tuple[Corpus, int, int]:
    """The rows that a run with few samples would take, tokenized in memory, how many the run itself takes, and how many
    of those a held-out set of one's own has, of which a sample is taken too."""
    source, most = Source.of(config, data), config.dataset.max_samples
    encoder = source.encoder(tokenizer)
    lines = source.lines(encoder)
    room = _MAX_ROWS + (config.dataset.eval_samples if source.border is None else 0)
    train, own = Smallest(min(room, most or room)), Smallest(_MAX_ROWS)
    for offset, row in lines:
        side = train if source.border is None or row.line < source.border else own
        side.add(keys(row, source.split_seed), (offset, row))
    corpus = corpus_of([*train.rows(), *own.rows()], lines, source, encoder, file_sha256(data))
    return corpus, min(train.seen, most or train.seen) + own.seen, own.seen


class Smallest:
    """The ``most`` rows with the smallest hashes."""

    def __init__(self, most: int) -> None:
        self._most, self._kept = most, list[tuple[int, int, int, Located]]()
        self.seen = 0

    def add(self, hashes: tuple[int, int], located: Located) -> None:
        self.seen += 1
        # Numbers differ, so that rows are never compared.
        entry = (-hashes[0], -hashes[1], -self.seen, located)
        (heapq.heappush if len(self._kept) < self._most else heapq.heappushpop)(self._kept, entry)

    def rows(self) -> list[Located]:
        """In the order in which they came."""
        return [located for *_, located in sorted(self._kept, key=lambda entry: -entry[2])]


def config_of(request: dict[str, Any]) -> Config:
    """The parts of a configuration that say what data are: of the request, as the launcher has checked them."""
    kinds = {"model": ModelConfig, "dataset": DatasetConfig, "training": TrainingConfig}
    parts: dict[str, Any] = {
        name: OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), request[name]))
        for name, kind in kinds.items()
    }
    return Config(**parts, seed=request["seed"])


def look(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to the plan: the shape, the place of the tokenizer, or the error that the run would end with."""
    config = config_of(request)
    try:
        shape = measure(config, tuple(Extent(*extent) for extent in request["extents"]))
    except TrntuneError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        return {"error": fault, "exit_code": FAILED}
    tokenizer = sources.tokenizer_at_hand(config.model)
    return {
        "shape": None if shape is None else dataclasses.asdict(shape),
        "tokenizer": None if tokenizer is None else str(tokenizer),
    }


def main(arguments: list[str]) -> int:
    """Process entry."""
    print(json.dumps(look(json.loads(arguments[0]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
