"""Text to token ids with labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from launcher.errors import TrntuneError
from trainer.data.prompts import render
from trainer.data.rows import InstructionRow

IGNORE = -100
_BATCH = 1000


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


def prompt_ids(row: InstructionRow, prompt: str, tokenizer: Any) -> list[int]:
    """The ids that training puts before the answer, so generation starts from exactly these."""
    return encode_prompts([render(row, prompt, tokenizer)[0]], prompt, tokenizer)[0]


def encode_prompts(texts: list[str], prompt: str, tokenizer: Any) -> list[list[int]]:
    """Prompts as ids, with BOS where the tokenizer's own rule has one and never an EOS at the end.

    A plain prompt is the user's text: what looks like a control token in it is text. A chat template writes control
    tokens and its own BOS, so there they are read and none is added.
    """
    plain = prompt == "plain"
    encoded = _encode(texts, tokenizer, split_special_tokens=plain, add_special_tokens=plain)
    eos = tokenizer.eos_token_id
    return [ids[:-1] if plain and ids and ids[-1] == eos else ids for ids in encoded]


def tokenize(rows: list[InstructionRow], prompt: str, loss_on: str, max_length: int, tokenizer: Any) -> Tokenized:
    """Tokenize rows; EOS ends every answer and is trained on.

    Prompt and answer are tokenized apart, so that the border between them lies where generation begins. What is
    longer than ``max_length`` loses its end. Raises TrntuneError when no example is left.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise TrntuneError("the model's tokenizer names no end-of-sequence token, so answers could not be ended")
    examples: list[Example] = []
    truncated = dropped = 0
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        texts = [render(row, prompt, tokenizer) for row in batch]
        prompts = encode_prompts([text[0] for text in texts], prompt, tokenizer)
        answers = _encode([text[1] for text in texts], tokenizer, split_special_tokens=True, add_special_tokens=False)
        for row, before, answer in zip(batch, prompts, answers, strict=True):
            truncated += len(before) + len(answer) + 1 > max_length
            if len(before) >= max_length:
                dropped += 1
                continue
            examples.append(_example(before, [*answer, eos], loss_on, max_length, row.line))
    if not examples:
        raise TrntuneError(
            f"training.max_length={max_length}: no row leaves room for an answer ({dropped} dropped); use a longer one"
        )
    return Tokenized(examples, truncated - dropped, dropped)


def _example(before: list[int], answer: list[int], loss_on: str, max_length: int, line: int) -> Example:
    ids = [*before, *answer][:max_length]
    masked = 0 if loss_on == "all" else len(before)
    return Example(ids, [IGNORE] * masked + ids[masked:], line)


def _encode(
    texts: list[str], tokenizer: Any, *, split_special_tokens: bool, add_special_tokens: bool
) -> list[list[int]]:
    """Batch tokenization; ``split_special_tokens`` reads control tokens in the text as plain text."""
    backend = tokenizer.backend_tokenizer
    with _own_settings_restored(backend):
        backend.encode_special_tokens = split_special_tokens
        # A tokenizer.json may carry the padding and truncation of whoever saved it, and a padded call leaves its own:
        # either would change the training rows without a word.
        backend.no_padding()
        backend.no_truncation()
        encodings = backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
    return [encoding.ids for encoding in encodings]


@contextmanager
def _own_settings_restored(backend: Any) -> Iterator[None]:
    """Leave the tokenizer as it was found: it is saved beside the trained model."""
    special, padding, truncation = backend.encode_special_tokens, backend.padding, backend.truncation
    try:
        yield
    finally:
        backend.encode_special_tokens = special
        if padding is not None:
            backend.enable_padding(**padding)
        if truncation is not None:
            backend.enable_truncation(**truncation)
