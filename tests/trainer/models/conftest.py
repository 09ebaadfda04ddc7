"""The real model: downloaded and converted once, then kept in the ordinary cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.schema import Config
from tests.launcher.conftest import single
from trainer.fetch import fetch_model


def composed(*arguments: str) -> Config:
    """The configuration of a command line."""
    config = single(*arguments).config
    assert isinstance(config, Config)
    return config


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The model directory of the default model."""
    return fetch_model(composed("model=smollm2_135m").model)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("TRNTUNE_CACHE", os.fspath(tmp_path / "cache"))
    return tmp_path / "cache"
