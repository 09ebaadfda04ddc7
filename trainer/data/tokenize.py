"""Text to token ids with labels."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from launcher.errors import TrntuneError
from trainer.data.prompts import render
from trainer.data.rows import InstructionRow

IGNORE = -100

Encoded = tuple[list[list[int]], list[list[int]]]
"""Ids of prompts, and of answers with their EOS."""


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


class Encoder:
    """Rows to ids: prompt and answer apart, so that the border between them lies where generation begins.

    The prompt has BOS where the tokenizer's own rule has one, and never an EOS at its end; EOS ends the answer. A plain
    prompt and every answer are the user's text: what looks like a control token in them is text. A chat template writes
    control tokens and its own BOS, so there they are read and none is added. Raises TrntuneError for a tokenizer
    without EOS.
    """

    def __init__(self, tokenizer: Any, prompt: str) -> None:
        """``prompt`` is "plain" or "chat"."""
        self.tokenizer, self.prompt = tokenizer, prompt
        self._backend = tokenizer.backend_tokenizer
        if tokenizer.eos_token_id is None:
            raise TrntuneError("the model's tokenizer names no end-of-sequence token, so answers could not be ended")
        self.eos: int = tokenizer.eos_token_id

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of all that ids depend on beside the row."""
        with self.ready():
            backend = self._backend.to_str()
        template = None if self.prompt == "plain" else self.tokenizer.chat_template
        facts = json.dumps([version("tokenizers"), self.prompt, self.eos, template])
        return hashlib.sha256(f"{facts}{backend}".encode()).hexdigest()

    @functools.cached_property
    def dtype(self) -> np.dtype[Any]:
        """The smallest that holds every id."""
        return np.min_scalar_type(max(self._backend.get_vocab(with_added_tokens=True).values()))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside, texts are neither cut nor padded. The tokenizer is left as it was found: it is saved beside the
        trained model.

        A tokenizer.json may carry the padding and truncation of whoever saved it, and a padded call leaves its own:
        either would change the training rows without a word.
        """
        backend = self._backend
        special, padding, truncation = backend.encode_special_tokens, backend.padding, backend.truncation
        backend.encode_special_tokens = False
        backend.no_padding()
        backend.no_truncation()
        try:
            yield
        finally:
            backend.encode_special_tokens = special
            if padding is not None:
                backend.enable_padding(**padding)
            if truncation is not None:
                backend.enable_truncation(**truncation)

    def texts(self, rows: list[InstructionRow]) -> tuple[list[str], list[str]]:
        """Prompts and answers."""
        rendered = [render(row, self.prompt, self.tokenizer) for row in rows]
        return [prompt for prompt, _ in rendered], [answer for _, answer in rendered]

    def start(self, prompts: list[str], answers: list[str]) -> tuple[list[Any], list[Any]]:
        """The tokenizer's own work, in its own threads; inside ``ready`` only."""
        plain = self.prompt == "plain"
        self._backend.encode_special_tokens = plain
        before = self._backend.encode_batch_fast(prompts, add_special_tokens=plain)
        self._backend.encode_special_tokens = True
        return before, self._backend.encode_batch_fast(answers, add_special_tokens=False)

    def finish(self, prompts: list[Any], answers: list[Any]) -> Encoded:
        """The ids of what ``start`` returned."""
        return [self._prompt(each.ids) for each in prompts], [[*each.ids, self.eos] for each in answers]

    def _prompt(self, ids: list[int]) -> list[int]:
        return ids[:-1] if self.prompt == "plain" and ids and ids[-1] == self.eos else ids

    def encode(self, rows: list[InstructionRow]) -> Encoded:
        """Ids of the rows."""
        with self.ready():
            return self.finish(*self.start(*self.texts(rows)))


def prompt_ids(row: InstructionRow, prompt: str, tokenizer: Any) -> list[int]:
    """The ids that training puts before the answer, so generation starts from exactly these."""
    return Encoder(tokenizer, prompt).encode([row])[0][0]


def tokenize(rows: list[InstructionRow], prompt: str, loss_on: str, max_length: int, tokenizer: Any) -> Tokenized:
    """A few rows in memory. What is longer than ``max_length`` loses its end. Raises TrntuneError when none is left."""
    pairs = list(zip(*Encoder(tokenizer, prompt).encode(rows), strict=True))
    examples = [
        example(before, answer, loss_on, max_length, row.line)
        for row, (before, answer) in zip(rows, pairs, strict=True)
        if len(before) < max_length
    ]
    dropped = len(rows) - len(examples)
    if not examples:
        raise no_room(max_length, dropped)
    cut = sum(len(before) < max_length < len(before) + len(answer) for before, answer in pairs)
    return Tokenized(examples, cut, dropped)


def example(before: list[int], answer: list[int], loss_on: str, max_length: int, line: int) -> Example:
    """A prompt and its answer, of which at least one token has room."""
    ids = [*before, *answer][:max_length]
    masked = 0 if loss_on == "all" else len(before)
    return Example(ids, [IGNORE] * masked + ids[masked:], line)


def no_room(max_length: int, dropped: int) -> TrntuneError:
    return TrntuneError(
        f"training.max_length={max_length}: no row leaves room for an answer ({dropped} dropped); use a longer one"
    )
