"""How a row becomes text: the plain prompt of the published comparison, or the model's own chat template."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from launcher.errors import Suspended, TrntuneError
from trainer.data.rows import InstructionRow


def render(row: InstructionRow, prompt: str, tokenizer: Any) -> tuple[str, str]:
    """The prompt and the answer as text, to be tokenized apart and put together. No EOS yet.

    ``prompt`` is "plain" or "chat". Raises TrntuneError when the tokenizer has no chat template.
    """
    return plain(row) if prompt == "plain" else chat(row, tokenizer)


def plain(row: InstructionRow) -> tuple[str, str]:
    """### Instruction, ### Context and ### Answer, joined by two newlines; an empty context is left out."""
    parts = [f"### Instruction\n{row.instruction}"]
    if row.context.strip():
        parts.append(f"### Context\n{row.context}")
    parts.append("### Answer\n")
    return "\n\n".join(parts), row.response


def chat(row: InstructionRow, tokenizer: Any) -> tuple[str, str]:
    """One user turn and the assistant's turn without what closes it."""
    if not tokenizer.chat_template:
        raise TrntuneError("dataset.prompt=chat: this model's tokenizer has no chat template; use dataset.prompt=plain")
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise TrntuneError(
            f"dataset.prompt=chat: {tokenizer.name_or_path} has several chat templates ({names}), and none is called "
            "default; rename one, or use dataset.prompt=plain"
        )
    question = f"{row.instruction}\n\n{row.context}" if row.context.strip() else row.instruction
    asked = [{"role": "user", "content": question}]
    try:
        prompt: str = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Suspended:  # a signal came
        raise
    except Exception as error:  # a template is a program of others: it may raise anything
        raise TrntuneError(_unrendered(Path(str(tokenizer.name_or_path)), error)) from None
    return prompt, row.response


def _unrendered(directory: Path, error: Exception) -> str:
    """What is wrong with a chat template: its file, where jinja says it the line, and jinja's words."""
    file = directory / "chat_template.jinja"
    where = str(file) if file.is_file() else f"{directory / 'tokenizer_config.json'}: chat_template"
    rendered = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    line = getattr(error, "lineno", None) or (rendered[-1] if rendered else None)
    at = "" if line is None else f", line {line}"
    words = " ".join(str(error).split()) or type(error).__name__
    return f"{where}{at}: {words}; correct the template, or use dataset.prompt=plain"
