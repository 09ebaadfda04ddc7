"""Conversations, and what a template makes of them."""

from __future__ import annotations

from typing import Any

from trainer.data import chat
from trainer.data.chat_encoder import ChatEncoder
from trainer.data.conversations import ChatRow, conversation, turns
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


def by_template(tokenizer: Any, given: list[dict[str, Any]], **more: Any) -> list[int]:
    """As generation tokenizes them."""
    ids: list[int] = tokenizer.apply_chat_template(given, tokenize=True, strftime_now=chat._DATE.strftime, **more)
    return ids
