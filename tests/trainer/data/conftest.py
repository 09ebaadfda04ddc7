"""Tokenizers and configurations for the data tests: no download."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.models.tiny_llama import byte_tokenizer


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
