"""Held-out questions, answered before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launcher.config.schema import Config
from trainer.data.rows import Row
from trainer.data.tokenize import end_ids, prompt_ids
from trainer.engines.base import Engine


def generations(engine: Engine, tokenizer: Any, rows: Sequence[Row], config: Config) -> list[str]:
    """The model's greedy answer to each row's prompt, the very prompt that training uses. Texts ask nothing."""
    rows = asked(rows)
    if not rows:
        return []
    prompts = [prompt_ids(row, config.dataset.prompt, tokenizer) for row in rows]
    ends = end_ids(rows[0], config.dataset.prompt, tokenizer)
    ids = engine.answer(prompts, config.tracking.sample_tokens, ends)
    return [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in ids]


def asked(rows: Sequence[Row]) -> list[Row]:
    """The rows that have a question."""
    return [row for row in rows if row.response]


def side_by_side(rows: Sequence[Row], before: list[str], after: list[str]) -> list[dict[str, str]]:
    """One record a question, for samples.jsonl and MLflow."""
    return [
        {
            "instruction": row.instruction,
            "context": row.context,
            "reference": row.response,
            "before": old,
            "after": new,
        }
        for row, old, new in zip(rows, before, after, strict=True)
    ]
