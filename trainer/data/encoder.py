"""Texts to token ids: prompts and answers of rows."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from launcher.errors import TrntuneError
from trainer.data.prompts import render
from trainer.data.rows import BadRowError, PairRow, Row, TextRow
from trainer.data.template_faults import check_template_has_question
from trainer.data.turn_end import turn_end

Spans = list[tuple[int, int]]
"""Where the answers of a row begin and end, in tokens of the whole."""


class Encoded(NamedTuple):
    """Ids of prompts, and of answers with their EOS; of conversations what follows the first prompt."""

    prompts: list[list[int]]
    answers: list[list[int]]
    spans: list[Spans] | None = None
    """of conversations, which may have several answers"""


class Encoder:
    """Rows to ids: prompt and answer apart, so that the border between them lies where generation begins.

    The prompt has BOS where the tokenizer's own rule has one, and never an EOS at its end; EOS ends the answer. A plain
    prompt and every answer are the user's text: what looks like a control token in them is text. A chat template writes
    control tokens and its own BOS, so there they are read and none is added; the token by which it ends a turn ends the
    answer then, since that is what whoever serves the model by it waits for. Raises TrntuneError for a tokenizer
    without EOS.
    """

    def __init__(self, tokenizer: Any, prompt: str, control: str | None = "text") -> None:
        """``prompt`` is "plain" or "chat"; ``control`` is dataset.control_tokens."""
        self.tokenizer, self.prompt, self.control = tokenizer, prompt, control
        self._backend = tokenizer.backend_tokenizer
        if tokenizer.eos_token_id is None:
            raise TrntuneError("the model's tokenizer names no end-of-sequence token, so answers could not be ended")
        self.eos: int = tokenizer.eos_token_id
        """ends an answer"""
        if prompt == "chat":
            check_template_has_question(tokenizer)
            self.eos = self.eos if (end := turn_end(tokenizer)) is None else end

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of all that ids depend on beside the row, with the library's version: it names cached tokens."""
        with self.ready():
            return self._sha256([version("tokenizers"), *self._facts()])

    @functools.cached_property
    def lasting_identity(self) -> str:
        """The same whichever version of tokenizers and transformers reads the tokenizer: a run goes on under another.

        transformers 5 puts a post-processor that adds nothing where 4.57 leaves none.
        """
        with self.ready(), self._without_idle_post_processor():
            return self._sha256(self._facts())

    def _sha256(self, facts: list[Any]) -> str:
        return hashlib.sha256(f"{json.dumps(facts)}{self._backend.to_str()}".encode()).hexdigest()

    def _facts(self) -> list[Any]:
        """What ids depend on beside the tokenizer's own file."""
        template = None if self.prompt == "plain" else self.tokenizer.chat_template
        return [self.prompt, self.eos, template, *(["read"] if self.control == "read" else [])]

    @contextmanager
    def _without_idle_post_processor(self) -> Iterator[None]:
        kept = self._backend.post_processor
        if self._backend.num_special_tokens_to_add(False) == 0:
            self._backend.post_processor = None
        try:
            yield
        finally:
            self._backend.post_processor = kept

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

    def template_sha256(self) -> str | None:
        """Of the chat template, where one is used."""
        used = self.prompt != "plain"
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest() if used else None

    def notes(self) -> list[str]:
        """What became of the rows so far, in words for the user."""
        return []

    def prepared(self, row: Row) -> Row:
        """The row, when it can be encoded. Raises BadRowError."""
        if self.control is None and isinstance(row, PairRow | TextRow):
            found = self._control.search(f"{row.instruction}\n{row.response}")
            if found:
                raise BadRowError(
                    f"holds {found.group()}, a control token of the tokenizer: dataset.control_tokens=read takes it as "
                    "one, dataset.control_tokens=text as its characters"
                )
        return row

    @functools.cached_property
    def _control(self) -> re.Pattern[str]:
        """What spells out a control token."""
        added = self._backend.get_added_tokens_decoder().values()
        return re.compile("|".join(re.escape(each.content) for each in added if each.special) or "(?!)")

    def texts(self, rows: Sequence[Row]) -> tuple[list[Any], ...]:
        """Prompts and answers."""
        rendered = [render(row, self.prompt, self.tokenizer) for row in rows]
        return [prompt for prompt, _ in rendered], [answer for _, answer in rendered]

    def start(self, prompts: list[str], answers: list[str]) -> tuple[list[Any], ...]:
        """The tokenizer's own work, in its own threads; inside ``ready`` only."""
        plain, read = self.prompt == "plain", self.control == "read"
        self._backend.encode_special_tokens = plain and not read
        before = self._backend.encode_batch_fast(prompts, add_special_tokens=plain)
        self._backend.encode_special_tokens = not read
        return before, self._backend.encode_batch_fast(answers, add_special_tokens=False)

    def finish(self, prompts: list[Any], answers: list[Any]) -> Encoded:
        """The ids of what ``start`` returned."""
        # Each look at ids makes a new list.
        before, after = [self._prompt(each.ids) for each in prompts], [each.ids for each in answers]
        for ids in after:
            ids.append(self.eos)
        if self.control == "read":
            pairs = [self._once(*pair) for pair in zip(before, after, strict=True)]
            before, after = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
        return Encoded(before, after)

    def _prompt(self, ids: list[int]) -> list[int]:
        return ids[:-1] if self.prompt == "plain" and ids and ids[-1] == self.eos else ids

    def _once(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """Without the BOS and the EOS of the tokenizer's own where the text has brought them."""
        if answer[-2:] == [self.eos, self.eos]:
            answer = answer[:-1]
        first = [*prompt, *answer][:2]
        if len(first) == 2 and first[0] == first[1] and first[0] in self._special_ids:
            prompt = prompt[1:]
        return prompt, answer

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self._backend.get_added_tokens_decoder().items()
        return frozenset(number for number, token in added if token.special)

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Ids of the rows."""
        with self.ready():
            return self.finish(*self.start(*self.texts(rows)))
