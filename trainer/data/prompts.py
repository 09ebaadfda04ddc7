"""How a row becomes text: the plain prompt of the published comparison, or the model's own chat template."""

from __future__ import annotations

from typing import Any

from launcher.errors import SuspendedError, TrntuneError
from trainer.data.rows import InstructionRow, PairRow, Row, TextRow
from trainer.data.template_faults import chosen_template, template_fault


def render(row: Row, prompt: str, tokenizer: Any) -> tuple[str, str]:
    """The prompt and the answer as text, to be tokenized apart and put together. No EOS yet.

    ``prompt`` is "plain" or "chat". Raises TrntuneError when the tokenizer has no chat template.
    """
    if isinstance(row, TextRow):
        return "", row.text
    if isinstance(row, PairRow):
        if prompt == "plain" or not row.own_prompt:
            return row.prompt, row.completion
        row = InstructionRow(row.prompt, "", row.completion)
    assert isinstance(row, InstructionRow)
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
    chosen_template(tokenizer)
    question = f"{row.instruction}\n\n{row.context}" if row.context.strip() else row.instruction
    asked = [{"role": "user", "content": question}]
    try:
        prompt: str = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except SuspendedError:  # a signal came
        raise
    except Exception as error:  # a template is a program of others: it may raise anything
        fault = template_fault(tokenizer, error)
        raise TrntuneError(f"{fault}; correct the template, or use dataset.prompt=plain") from None
    return prompt, row.response
