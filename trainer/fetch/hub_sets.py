"""Sets on the Hugging Face Hub by configuration and split: datasets says which files they are, and the project's own
readers read them, so that a value stays what it is in its file.

What was found is kept in the cache: without a way to the Hub the files that were downloaded before serve.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.schema import DatasetConfig
from launcher.errors import TrntuneError, in_one_line, nearest
from launcher.io import write_json
from trainer.data.imports import Part, imported
from trainer.fetch import cache, hub
from trainer.libraries.hub_versions import UNREACHABLE

_URL = re.compile(r"hf://datasets/(?P<id>[^@]+)@(?P<commit>[^/]+)/(?P<file>.+)")
_PATIENCE = 10.0
"""seconds for one answer of the Hub"""
_INSTEAD = "or download its files elsewhere and use dataset=files dataset.path=DIR"


@dataclass(frozen=True)
class Found:
    """The files of a configuration at one commit, by split."""

    commit: str
    splits: Mapping[str, list[str]]


def fetch_splits(dataset: DatasetConfig) -> Path:
    """One JSONL file of the rows of dataset.split and, held out, of dataset.eval_split, downloaded where they are not
    here yet. Raises TrntuneError in one line for what the Hub doesn't have or give."""
    found = _look_up(dataset)
    return _put_together(dataset, found, _downloaded(dataset, found))


def splits_at_hand(dataset: DatasetConfig) -> Path | None:
    """The same without asking anybody; None where something was never downloaded."""
    found = _remembered(dataset)
    here = None if found is None else _here(dataset, found)
    return None if found is None or here is None else _put_together(dataset, found, here)


def fetched_part(dataset: DatasetConfig) -> Part:
    """The rows of dataset.split alone, as a part of a mixture. Raises TrntuneError as ``fetch_splits``."""
    found = _look_up(dataset)
    return _part(dataset, found, dataset.split, _downloaded(dataset, found))


def part_at_hand(dataset: DatasetConfig) -> Part | None:
    """The same without asking anybody; None where something was never downloaded."""
    found = _remembered(dataset)
    here = None if found is None else _here(dataset, found)
    return None if found is None or here is None else _part(dataset, found, dataset.split, here)


def _downloaded(dataset: DatasetConfig, found: Found) -> dict[str, Path]:
    """The files of both splits by their names, downloaded where they are not here yet."""
    assert dataset.hub_id is not None
    names = dict.fromkeys([*_files(dataset, found, dataset.split), *_files(dataset, found, dataset.eval_split)])
    return {name: hub.fetch_dataset_file(dataset.hub_id, name, found.commit) for name in names}


def _here(dataset: DatasetConfig, found: Found) -> dict[str, Path] | None:
    """The same files, if they all are here."""
    assert dataset.hub_id is not None
    names = [*_files(dataset, found, dataset.split), *_files(dataset, found, dataset.eval_split)]
    here = {name: hub.cached_file(dataset.hub_id, name, found.commit, "dataset") for name in names}
    there = {name: path for name, path in here.items() if path is not None}
    return there if len(there) == len(here) else None


def _part(dataset: DatasetConfig, found: Found, split: str, here: Mapping[str, Path]) -> Part:
    names = _files(dataset, found, split)
    files = tuple((here[name], f"{dataset.hub_id}@{found.commit[:12]}/{name}") for name in names)
    return Part(f"{dataset.hub_id} {split}", files)


def _put_together(dataset: DatasetConfig, found: Found, here: Mapping[str, Path]) -> Path:
    def parts(split: str | None) -> list[Part]:
        part = None if split is None else _part(dataset, found, split, here)
        return [part] if part is not None and part.files else []

    return imported(parts(dataset.split), parts(dataset.eval_split), dataset.split_seed)


def _files(dataset: DatasetConfig, found: Found, split: str | None) -> list[str]:
    """The files of a split, none of None."""
    if split is None:
        return []
    if split not in found.splits:
        near = nearest(split, found.splits)
        hint = f"; did you mean {near}?" if near else ""
        raise TrntuneError(
            f"data set {dataset.hub_id} has no split {split!r} (there are: {', '.join(found.splits) or 'none'}){hint}"
        )
    return list(found.splits[split])


def _look_up(dataset: DatasetConfig) -> Found:
    """Ask the Hub; what was found before serves where it can't be reached."""
    try:
        found = _ask(dataset)
    except _Unreachable as fault:
        earlier = _remembered(dataset)
        if earlier is None:
            raise TrntuneError(
                f"data set {dataset.hub_id}: the Hub can't be reached ({fault}) and nothing was downloaded before: "
                f"check the network, {_INSTEAD}"
            ) from None
        return earlier
    file = _memo(dataset)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"commit": found.commit, "splits": dict(found.splits)})
    return found


class _Unreachable(Exception):
    """The Hub did not answer."""


def _ask(dataset: DatasetConfig) -> Found:
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetsError

    assert dataset.hub_id is not None
    commit = _commit(dataset.hub_id, dataset.revision)
    try:
        builder = load_dataset_builder(dataset.hub_id, name=dataset.config, revision=commit, token=hub.token())
    except (DatasetsError, ValueError, RuntimeError, OSError) as error:
        raise TrntuneError(f"data set {dataset.hub_id}: {in_one_line(error, 300)}, {_INSTEAD}") from None
    return _of_builder(dataset, builder)


def _commit(hub_id: str, revision: str | None) -> str | None:
    """What the revision is now: one question. datasets asks several, each again and again where nobody answers."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().dataset_info(hub_id, revision=revision, timeout=_PATIENCE, token=hub.token()).sha
    except (RepositoryNotFoundError, RevisionNotFoundError):
        reason = (
            "the Hub knows no such set or revision, or it is private or gated: check the name, accept its licence on "
            "its page, set HF_TOKEN in the environment"
        )
    except HFValidationError as error:
        reason = f"{error}: check the name"
    except UNREACHABLE as error:
        raise _Unreachable(type(error).__name__) from None
    except HfHubHTTPError as error:
        reason = hub.refused(error)
    raise TrntuneError(f"data set {hub_id}: {reason}, {_INSTEAD}")


def _of_builder(dataset: DatasetConfig, builder: Any) -> Found:
    _check_options(dataset, builder.config)
    commits: set[str] = set()
    splits: dict[str, list[str]] = {}
    for split, urls in (builder.config.data_files or {}).items():
        matches = [_URL.fullmatch(str(url)) for url in urls]
        commits |= {match["commit"] for match in matches if match}
        splits[str(split)] = [match["file"] for match in matches if match]
    if len(commits) != 1:
        raise TrntuneError(f"data set {dataset.hub_id}: datasets names no files for it; {_INSTEAD}")
    return Found(commits.pop(), splits)


def _check_options(dataset: DatasetConfig, config: Any) -> None:
    """A set may say how datasets is to read its files, which no other reader does."""
    field, separator = getattr(config, "field", None), getattr(config, "sep", ",")
    if field is not None:
        raise TrntuneError(f"data set {dataset.hub_id}: its rows lie in the field {field!r} of its files; {_INSTEAD}")
    if separator not in (",", "\t"):
        raise TrntuneError(f"data set {dataset.hub_id}: its files are separated by {separator!r}; {_INSTEAD}")


def _memo(dataset: DatasetConfig) -> Path:
    facts = json.dumps([dataset.hub_id, dataset.config, dataset.revision])
    return cache.root() / "hub" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"


def _remembered(dataset: DatasetConfig) -> Found | None:
    file = _memo(dataset)
    return Found(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
