"""The config.json of a model that isn't here yet, as its YAML knows it: what checks and plan build the model of."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.config.schema import ModelConfig
from launcher.errors import TrntuneError


def described_by(model: ModelConfig) -> Path | None:
    """A directory with the config.json of a model: its own, or one that holds model.config_json; None without
    either."""
    if model.source == "local" and model.path:
        return Path(model.path).expanduser()
    return _written(json.dumps(model.config_json, sort_keys=True)) if model.config_json else None


def told_of(model: ModelConfig, text: str) -> str:
    """``text`` about ``described_by``'s directory, in words that whoever has never seen it understands."""
    directory = described_by(model)
    return text.replace(str(directory), str(model.hub_id)) if model.config_json else text


@functools.cache
def _written(content: str) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="trntune-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    (directory / "config.json").write_text(content)
    return directory


def check_agrees(model: ModelConfig, directory: Path) -> None:
    """Raise TrntuneError where the config.json that was downloaded differs from what checks and plan went by."""
    try:
        found = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # told by what loads it
    for key, here, there in _differences(model.config_json, found):
        raise TrntuneError(
            f"model {model.hub_id}: its config.json has {key}={json.dumps(there)}, and model.config_json, by which it "
            f"was planned, {json.dumps(here)}: give model.revision=COMMIT of the model that was meant, or correct "
            f"{key} in model.config_json"
        )


def _differences(known: dict[str, Any], found: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each setting that is known and another one in the file: its dotted name and both values."""
    for key, value in known.items():
        there = found.get(key) if isinstance(found, dict) else None
        if isinstance(value, dict):
            yield from _differences(value, there, f"{prefix}{key}.")
        elif value != there:
            yield f"{prefix}{key}", value, there
