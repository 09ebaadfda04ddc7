"""Which chat templates a model directory has, by their names."""

from __future__ import annotations

import json
from pathlib import Path

FILE, FOLDER, SETTINGS = "chat_template.jinja", "additional_chat_templates", "tokenizer_config.json"
"""Where transformers saves the default and others; before 4.51, and by those who turn that off, in the settings."""


def named_templates(directory: Path) -> list[str]:
    """Names of the templates of a model that has several, sorted; none where it has one or none. As transformers reads
    them: files go before the settings."""
    others = [file.stem for file in (directory / FOLDER).glob("*.jinja")]
    if others:
        return sorted({*others, *(["default"] if (directory / FILE).is_file() else [])})
    try:
        content = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
        found = content.get("chat_template") if isinstance(content, dict) else None
    except (OSError, ValueError):
        return []  # whoever loads the tokenizer says so
    if (directory / FILE).is_file() or not isinstance(found, list):
        return []
    return sorted(str(each["name"]) for each in found if isinstance(each, dict) and "name" in each)
