"""What is wrong with a chat template, by file and line."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

from launcher.errors import in_one_line

OWN = "dataset.chat_template"


def template_fault(tokenizer: Any, error: BaseException) -> str:
    """The template's file, where jinja says it the line, and jinja's words for ``error``, which it has raised."""
    rendered = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    line = getattr(error, "lineno", None) or (rendered[-1] if rendered else None)
    at = "" if line is None else f", line {line}"
    return f"{_place(tokenizer)}{at}: {in_one_line(error)}"


def _place(tokenizer: Any) -> str:
    """The file of the model that the tokenizer's template is in, or the setting that has replaced it."""
    template, directory = tokenizer.chat_template, Path(str(tokenizer.name_or_path))
    file, settings = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    if isinstance(template, dict):
        return str(file if file.is_file() else settings)
    if file.is_file():
        return str(file) if file.read_text(encoding="utf-8") == template else OWN
    stored = json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else None
    return f"{settings}: chat_template" if stored == template else OWN
