"""The fetch stage: model and data are on this machine, complete and checked, before anything expensive starts.

Free of torch and transformers when everything is in the cache: those are imported by what has to be built.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.config.schema import Config
from launcher.model_dir.generation_config import repair_of
from launcher.model_dir.weights import check_fit
from launcher.plan.steps import check_enough_rows, row_problems
from launcher.run_dir.layout import RunDir
from trainer.data.source import Source
from trainer.fetch.sources import fetch_dataset, fetch_model

_LARGE = 32 << 20
"""Bytes of a data set that is tokenized here, where no accelerator waits. A smaller one takes the training stage less
time than importing transformers once more."""
_MIN_TOKENS = 8
"""of an instruction with its prompt"""


def run(config: Config, run_dir: RunDir) -> dict[str, Any]:
    """Returns model_dir, dataset_path and how long it took, seconds."""
    start = time.perf_counter()
    model = fetch_model(config.model)
    check_fit(model)
    data = fetch_dataset(config.dataset)
    try_files(config, model, data)
    if data.stat().st_size >= _LARGE:
        tokenize_dataset(config, model, data)
    elif "train" in config.stages:
        look_at_rows(config, data)
    return {"model_dir": str(model), "dataset_path": str(data), "seconds": time.perf_counter() - start}


def try_files(config: Config, model_dir: Path, data: Path) -> None:
    """What is known of the end of a run from the base's files, where no accelerator waits.

    Raises TrntuneError for a generation_config.json or a chat template that is broken, and for a tokenizer that changes
    when it is saved. The training stage looks again; importing transformers for it here pays on an accelerator only.
    """
    repair_of(model_dir)
    conversational = Source.of(config, data).found.conversational
    needed = conversational or config.dataset.prompt == "chat" or config.dataset.chat_template is not None
    if not needed and config.accelerator.device == "cpu" and (model_dir / "tokenizer.json").is_file():
        return
    from trainer.libraries.transformers_files import save_tokenizer
    from trainer.models.load import run_tokenizer
    from trainer.rehearsal import CONVERSATION, QUESTION, try_tokenizer

    tokenizer = run_tokenizer(config, model_dir)
    row = replace(CONVERSATION, thinking=config.dataset.thinking) if conversational else QUESTION
    with tempfile.TemporaryDirectory(prefix="trntune-") as folder:
        save_tokenizer(tokenizer, Path(folder))
        try_tokenizer(tokenizer, row, config.dataset.prompt, Path(folder), config.model.trust_remote_code)


def tokenize_dataset(config: Config, model_dir: Path, data: Path) -> None:
    """Have the training stage find its tokens and its packing in the cache. Raises TrntuneError for broken data, and
    UsageError for too few."""
    from trainer.data.prepare import prepare
    from trainer.models.load import run_tokenizer

    prepared = prepare(config, data, run_tokenizer(config, model_dir))
    if "train" in config.stages:
        check_enough_rows(config, prepared.filled_rows)


def look_at_rows(config: Config, data: Path) -> None:
    """Raise what the training stage would raise for broken data and for too few of them, here where no accelerator
    waits. Rows are tokenized only where their number alone doesn't tell that they suffice."""
    source, dataset = Source.of(config, data), config.dataset
    there = sum(1 for _, row in source.lines() if source.border is None or row.line < source.border)
    used = min(there, dataset.max_samples or there) - (dataset.eval_samples if source.border is None else 0)
    if next(row_problems(config, _fewest(config, source, used)), None) is not None:
        from trainer.probes.dataset import measure  # numpy, and what tokenizes

        shape = measure(config)
        if shape is not None and shape.measured == shape.available:
            check_enough_rows(config, shape.filled)


def _fewest(config: Config, source: Source, used: int) -> int:
    """How many rows of training.max_length ``used`` rows of the data give at least."""
    if config.dataset.too_long == "drop":
        return 0
    instructions = source.found.format in ("instruction", "alpaca") and source.prompt_template is None
    tokens = _MIN_TOKENS if instructions else 2  # one, and the one that ends it
    return used * tokens // config.training.max_length if config.dataset.packing else used
