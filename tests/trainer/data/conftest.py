"""Tokenizers and configurations for the data tests: no download."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import Config
from tests.trainer.data.files import ROWS, write_jsonl
from tests.trainer.models.conftest import composed
from trainer.data.prepare import PreparedData, prepare
from trainer.fetch.tiny_llama import byte_tokenizer


def config_for(path: Path, *arguments: str) -> Config:
    """Rows of 256 positions from a JSONL file, seven questions held out, four rows a step."""
    return composed(*settings_for(path), *arguments)


def settings_for(path: Path) -> tuple[str, ...]:
    """The command line of ``config_for``."""
    return (
        "dataset=jsonl", f"dataset.path={path}", "dataset.eval_samples=7", "training.max_length=256",
        "training.global_batch_size=4",
    )  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte is a token; EOS is <|im_end|>, id 2."""
    return byte_tokenizer(4096)


@pytest.fixture(scope="session")
def tokenizer_without_template() -> Any:
    """The same of a base model: it has no chat template."""
    tokenizer = byte_tokenizer(4096)
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes lines, given as objects, text or bytes, to a file."""

    def write(*lines: Any) -> Path:
        path = tmp_path / "rows.jsonl"
        texts = [line if isinstance(line, bytes | str) else json.dumps(line) for line in lines]
        path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts) + b"\n")
        return path

    return write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("TRNTUNE_CACHE", str(directory))
    return directory


@pytest.fixture
def expected(tmp_path: Path, tokenizer: Any) -> PreparedData:
    path = tmp_path / "expected.jsonl"
    write_jsonl(path, ROWS)
    return prepare(config_for(path), path, tokenizer)
