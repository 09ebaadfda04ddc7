"""The real model, downloaded and converted once, then kept in the ordinary cache; and small random ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from launcher.config.schema import Config
from tests.launcher.conftest import single
from tests.postprocess.merge.models import make_base
from trainer.fetch.sources import fetch_model
from trainer.models.load import load_model


def composed(*arguments: str) -> Config:
    """The configuration of a command line."""
    config = single(*arguments).config
    assert isinstance(config, Config)
    return config


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The model directory of the default model."""
    return fetch_model(composed("model=smollm2_135m").model)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random models, by their kind."""
    directory = tmp_path_factory.mktemp("bases")
    return {kind: make_base(directory / kind, kind) for kind in ("llama", "llama_tied", "qwen3", "gpt2")}


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("TRNTUNE_CACHE", os.fspath(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny() -> Path:
    return fetch_model(composed("model=tiny_llama").model)


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "base"))


def config_of(base: Path, *arguments: str):
    return composed("model=local", f"model.path={base}", "training.max_length=128", *arguments)


def load(base: Path):
    return load_model(base, config_of(base), "eager")
