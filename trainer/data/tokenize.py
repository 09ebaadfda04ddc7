"""Text to token ids with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.errors import TrntuneError
from trainer.data.conversations import ChatRow
from trainer.data.encoder import Encoder, Spans
from trainer.data.rows import PairRow, Row, TextRow

IGNORE = -100


@dataclass(frozen=True)
class Example:
    """One tokenized row. ``labels[i]`` is ``input_ids[i]`` where the loss counts it, else -100."""

    input_ids: list[int]
    labels: list[int]
    line: int = field(default=0, compare=False)
    """of the data set's file that it was made from, from 1"""


@dataclass(frozen=True)
class Tokenized:
    """Examples, how many were cut at max_length, and how many had no room left for an answer and were dropped."""

    examples: list[Example]
    truncated: int
    dropped: int


def encoder_of(rows: Sequence[Row], prompt: str, tokenizer: Any) -> Encoder:
    """The encoder of a few rows in memory, which are of one format."""
    first = rows[0] if rows else None
    if isinstance(first, ChatRow):
        from trainer.data.chat_encoder import ChatEncoder

        return ChatEncoder(tokenizer, first.thinking)
    verbatim = isinstance(first, TextRow) or (isinstance(first, PairRow) and not first.own_prompt)
    return Encoder(tokenizer, "plain" if verbatim else prompt)


def prompt_ids(row: Row, prompt: str, tokenizer: Any) -> list[int]:
    """The ids that training puts before the (last) answer, so generation starts from exactly these."""
    encoder = encoder_of([row], prompt, tokenizer)
    if isinstance(row, ChatRow):
        ids: list[int] = encoder.question_ids(row)  # type: ignore[attr-defined]
        return ids
    return encoder.encode([row]).prompts[0]


def end_ids(row: Row, prompt: str, tokenizer: Any) -> list[int]:
    """The tokens that generation stops at: first the one that training ends an answer with, and the tokenizer's EOS."""
    ends = (encoder_of([row], prompt, tokenizer).eos, tokenizer.eos_token_id)
    return list(dict.fromkeys(each for each in ends if each is not None))


def tokenize(rows: Sequence[Row], prompt: str, loss_on: str, max_length: int, tokenizer: Any) -> Tokenized:
    """A few rows in memory. What is longer than ``max_length`` loses its end. Raises TrntuneError when none is left."""
    before, after, spans = encoder_of(rows, prompt, tokenizer).encode(rows)
    examples = [
        example(ids, answer, loss_on, max_length, row.line, None if spans is None else spans[number])
        for number, (row, ids, answer) in enumerate(zip(rows, before, after, strict=True))
        if len(ids) < max_length
    ]
    dropped = len(rows) - len(examples)
    if not examples:
        raise no_room(max_length, dropped)
    cut = sum(len(ids) < max_length < len(ids) + len(answer) for ids, answer in zip(before, after, strict=True))
    return Tokenized(examples, cut, dropped)


def example(
    before: list[int], answer: list[int], loss_on: str, length: int, line: int, spans: Spans | None = None
) -> Example:
    """A prompt and its answer, of which at least one token has room among ``length``; ``spans`` of a conversation."""
    ids = [*before, *answer][:length]
    if spans is None or loss_on == "all":
        masked = 0 if loss_on == "all" else len(before)
        return Example(ids, [IGNORE] * masked + ids[masked:], line)
    labels = [IGNORE] * len(ids)
    for begin, end in spans:
        labels[begin:end] = ids[begin:end]
    return Example(ids, labels, line)


def no_room(max_length: int, dropped: int) -> TrntuneError:
    return TrntuneError(
        f"training.max_length={max_length}: no row leaves room for an answer ({dropped} dropped); use a longer one"
    )
