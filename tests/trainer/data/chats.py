"""Conversations, and what a template makes of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from trainer.data.chat_encoder import ChatEncoder
from trainer.data.conversations import ChatRow, conversation, turns
from trainer.data.template_day import DAY
from trainer.data.tokenize import IGNORE, tokenize

TURNS = (
    ("user", "What is a river?"),
    ("assistant", "It is water."),
    ("user", "And a lake?"),
    ("assistant", "Water that stays."),
)


def messages(*given: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in given]


def row_of(*given: tuple[str, str], thinking: bool | None = None) -> ChatRow:
    return conversation(turns(messages(*given), "messages", False), 0, thinking, 1)


def encoded(tokenizer: Any, row: ChatRow) -> tuple[list[int], list[list[int]]]:
    """All ids, and those that are trained on, answer by answer."""
    [prompt], [rest], [spans] = ChatEncoder(tokenizer, row.thinking).encode([row])
    ids = [*prompt, *rest]
    [example] = tokenize([row], "plain", "response", 4096, tokenizer).examples
    assert example.input_ids == ids
    trained = {place for begin, end in spans for place in range(begin, end)}
    assert example.labels == [each if place in trained else IGNORE for place, each in enumerate(ids)]
    return ids, [ids[begin:end] for begin, end in spans]


class _Then(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return DAY


def by_template(tokenizer: Any, given: list[dict[str, Any]], tokenize: bool = True, **more: Any) -> Any:
    """The ids as generation tokenizes them, or their text, by transformers alone, on the day that rows are written."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chat_template_utils, "datetime", _Then)
        # Since transformers 5 ids come in a dict if nothing is said.
        return tokenizer.apply_chat_template(given, tokenize=tokenize, return_dict=False, **more)
