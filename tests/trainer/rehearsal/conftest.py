"""A small model directory of each test's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.trainer.models.conftest import composed
from trainer.fetch.sources import fetch_model

# As the first Llama 2 and Vicuna came.
SAMPLED = {"eos_token_id": 2, "pad_token_id": 0, "temperature": 0.6, "top_p": 0.9}


@pytest.fixture(scope="session")
def tiny() -> Path:
    return fetch_model(composed("experiment=tiny").model)


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """A model directory of its own, with files of other contents."""

    def make(**files: Any) -> Path:
        directory = tmp_path / "base"
        shutil.copytree(tiny, directory)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (directory / f"{name}.{'jinja' if name == 'chat_template' else 'json'}").write_text(text)
        return directory

    return make


def local(directory: Path) -> tuple[str, ...]:
    return ("model=local", f"model.path={directory}", "tracking=none", "tracking.samples=1")


def size(*directories: Path) -> int:
    return sum(file.stat().st_size for directory in directories for file in directory.rglob("*") if file.is_file())


def generation_of(directory: Path, again: Path) -> dict[str, Any]:
    """What a saved model says of generation, once it was loaded and saved again."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.save_pretrained(again)
    content: dict[str, Any] = json.loads((again / "generation_config.json").read_text())
    content.pop("transformers_version")
    return content
