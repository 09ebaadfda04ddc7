"""What is wrong with a chat template, by file and line."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

from launcher.errors import SuspendedError, TrntuneError, in_one_line
from launcher.model_dir.chat_templates import FILE, FOLDER, SETTINGS
from trainer.data.turn_end import QUESTION, tried

OWN = "dataset.chat_template"
NO_QUESTION = "the model's chat template leaves out what the user says, so answers would be trained without questions"


def check_template_has_question(tokenizer: Any) -> None:
    """Raise TrntuneError for a template that doesn't write the user's turn; what else is wrong with one is told where
    rows are written by it."""
    text = tried(tokenizer, [{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    if text is not None and QUESTION not in text:
        raise TrntuneError(f"{NO_QUESTION}; correct it, or use dataset.prompt=plain")


def chosen_template(tokenizer: Any) -> str:
    """The template that rows are written by. Raises TrntuneError where there are several and none is the default."""
    found = tokenizer.chat_template
    if isinstance(found, dict) and "default" not in found:
        raise TrntuneError(
            f"{tokenizer.name_or_path} has several chat templates ({', '.join(sorted(found))}), and none is called "
            "default; say which by dataset.chat_template=NAME"
        )
    return str(found["default"] if isinstance(found, dict) else found)


def unread_faults(tokenizer: Any) -> list[str]:
    """Of templates that are saved with the tokenizer and can't be read, what is wrong with each, in words for the user.
    Nothing is rendered: that is done where rows are written by them."""
    from transformers.utils.chat_template_utils import render_jinja_template

    found = tokenizer.chat_template or {}
    faults = []
    for name, template in (found if isinstance(found, dict) else {"default": found}).items():
        try:
            render_jinja_template(conversations=[], chat_template=template)
        except SuspendedError:  # a signal came
            raise
        except Exception as error:  # of jinja, or of what isn't text
            fault = template_fault(tokenizer, error, name)
            faults.append(
                f"{fault}: this chat template can't be read, and is saved with what is trained as it is; correct it, "
                "or give another one by dataset.chat_template=FILE"
            )
    return faults


def template_fault(tokenizer: Any, error: BaseException, name: str = "default") -> str:
    """The file of the template ``name``, where jinja says it the line, and jinja's words for ``error``, which it has
    raised."""
    rendered = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    line = getattr(error, "lineno", None) or (rendered[-1] if rendered else None)
    at = "" if line is None else f", line {line}"
    return f"{_place(tokenizer, name)}{at}: {in_one_line(error)}"


def _place(tokenizer: Any, name: str) -> str:
    """The file of the model that the template of this name is in, or the setting that has replaced it."""
    found, directory = tokenizer.chat_template, Path(str(tokenizer.name_or_path))
    template = found.get(name) if isinstance(found, dict) else found
    settings = directory / SETTINGS
    files = [directory / FILE, *sorted((directory / FOLDER).glob("*.jinja"))]
    for file in filter(Path.is_file, files):
        if file.read_text(encoding="utf-8") == template:
            return str(file)
    stored = json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else None
    if isinstance(stored, list):
        names = [each.get("name") for each in stored if isinstance(each, dict) and each.get("template") == template]
        return f"{settings}: chat_template {names[0]}" if names else OWN
    return f"{settings}: chat_template" if stored == template else OWN
