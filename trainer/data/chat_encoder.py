"""Conversations to token ids: one text, tokenized as generation does it, and the tokens of its answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from launcher.errors import TrntuneError
from trainer.data.chat import ChatTemplate, Rendered
from trainer.data.conversations import ChatRow
from trainer.data.encoder import Encoded, Encoder
from trainer.data.rows import Row

_FORMAT = 1
"""Raised when ids or answers of the same row change: it is in the identity."""

Ids = tuple[list[int], list[tuple[int, int]]]
"""All ids of a row, and where its answers begin and end in them."""


class ChatEncoder(Encoder):
    """Conversations to ids. The template writes control tokens and BOS, so none is added; what a row's own text spells
    out of them is text. Raises TrntuneError for a template that can't be trained with.

    An answer follows the very tokens that generation begins with: a prompt that is tokenized together with the answer
    may end in others (of "\\n\\nIt" GPT-2's pattern makes three tokens, of "\\n\\n" alone one). So each is tokenized
    apart, unless the tokenizer puts something before every text (SentencePiece's space): then the whole is tokenized,
    and the answers are found in it by their characters.
    """

    def __init__(self, tokenizer: Any, thinking: bool | None) -> None:
        self.tokenizer, self.prompt, self.control = tokenizer, "chat", "text"
        self._backend = tokenizer.backend_tokenizer
        self.template = ChatTemplate(tokenizer, thinking)
        self._added = set(self._backend.get_added_tokens_decoder())
        self.eos = int(self._backend.token_to_id(self.template.end))
        with self.ready():
            self._adds_nothing = self._decoded([*self._piece("a"), *self._piece("b")]) == "ab"

    def _facts(self) -> list[Any]:
        return ["conversation", _FORMAT, self.template.thinking, self.tokenizer.chat_template]

    @contextmanager
    def ready(self) -> Iterator[None]:
        """As the base's, and offsets are those of the text: a post-processor would trim spaces off them."""
        kept = self._backend.post_processor
        self._backend.post_processor = None
        try:
            with super().ready():
                yield
        finally:
            self._backend.post_processor = kept

    def notes(self) -> list[str]:
        return [*self.template.remarks, *self.template.notes()]

    def prepared(self, row: Row) -> Row:
        assert isinstance(row, ChatRow)
        return replace(row, rendered=self.template.rendered(row))

    def texts(self, rows: Sequence[Row]) -> tuple[list[Any], ...]:
        """The rows as text."""
        found = []
        for row in rows:
            assert isinstance(row, ChatRow)
            found.append(row.rendered or self.template.rendered(row))
        return (found,)

    def start(self, rendered: list[Rendered], *_: Any) -> tuple[list[Any], ...]:  # type: ignore[override]
        """The tokenizer's own work; inside ``ready`` only."""
        if self._adds_nothing:
            return (self._apart(rendered),)
        whole = self._backend.encode_batch([each.text for each in rendered], add_special_tokens=False)
        return ([self._in_whole(each, encoding) for each, encoding in zip(rendered, whole, strict=True)],)

    def finish(self, found: list[Ids], *_: Any) -> Encoded:
        """The ids of what ``start`` returned: up to the first answer, and from there on."""
        prompts = [ids[: answers[0][0]] for ids, answers in found]
        rest = [ids[answers[0][0] :] for ids, answers in found]
        return Encoded(prompts, rest, [answers for _, answers in found])

    def _apart(self, rendered: Sequence[Rendered]) -> list[Ids]:
        """The rows cut where their answers begin and end, and around what spells out control tokens."""
        parts = [self._parts(each) for each in rendered]
        pieces = list(itertools.chain.from_iterable(itertools.chain.from_iterable(parts)))
        ids = {
            literal: iter(self._pieces([text for text, own in pieces if own == literal], literal))
            for literal in {own for _, own in pieces}
        }
        return [self._joined([[next(ids[literal]) for _, literal in part] for part in row]) for row in parts]

    def _parts(self, rendered: Rendered) -> list[list[tuple[str, bool]]]:
        """By turns what isn't trained on and an answer, each in pieces."""
        cuts = [0, *(place for answer in rendered.answers for place in answer)]
        return [self.template.pieces(rendered.text[begin:end]) for begin, end in itertools.pairwise(cuts)]

    @staticmethod
    def _joined(parts: list[list[list[int]]]) -> Ids:
        ids: list[int] = []
        borders: list[int] = []
        for part in parts:
            for piece in part:
                ids += piece
            borders.append(len(ids))
        return ids, list(zip(borders[::2], borders[1::2], strict=True))

    def _in_whole(self, rendered: Rendered, encoding: Any) -> Ids:
        if len(self.template.pieces(rendered.text)) == 1:
            spans = [self._span(encoding, begin, end) for begin, end in rendered.answers]
            whole = [span for span in spans if span is not None]
            if len(whole) == len(spans):
                return encoding.ids, whole
        [(ids, spans_apart)] = self._apart([rendered])
        spelled = "".join(text for text, _ in self.template.pieces(rendered.text))
        if self._decoded(ids) != self._decoded(self._piece(spelled)):
            raise TrntuneError(
                f"the tokenizer can't write an answer apart from its prompt, or a control token as text "
                f"({spelled[-60:]!r}); take such rows out"
            )
        return ids, spans_apart

    def _span(self, encoding: Any, begin: int, end: int) -> tuple[int, int] | None:
        """The tokens of an answer; None where one token holds the end of the prompt and the answer's beginning."""
        first = next((t for place in range(begin, end) if (t := encoding.char_to_token(place)) is not None), None)
        last = encoding.char_to_token(end - 1)
        assert first is not None
        assert last is not None
        if encoding.token_to_chars(first)[0] < begin:
            if encoding.ids[first] not in self._added:
                return None
            first += 1  # a control token that takes the spaces after it
        return first, last + 1

    def _decoded(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def _piece(self, text: str, literal: bool = False) -> list[int]:
        return self._pieces([text], literal)[0]

    def _pieces(self, texts: list[str], literal: bool) -> list[list[int]]:
        """Ids of each text; ``literal``: what spells out control tokens is text."""
        self._backend.encode_special_tokens = literal
        try:
            return [each.ids for each in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        finally:
            self._backend.encode_special_tokens = False

    def question_ids(self, row: ChatRow) -> list[int]:
        """The ids that generation of the last answer begins with."""
        pieces = self.template.pieces(self.template.question(row))
        with self.ready():
            return [each for text, literal in pieces for each in self._piece(text, literal)]


__all__ = ["ChatEncoder"]
