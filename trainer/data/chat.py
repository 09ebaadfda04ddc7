"""A chat template: what it makes of a conversation, where in it the answers stand, and what it changes or leaves out.

The answers are found by rendering what comes before each of them with add_generation_prompt, which is what generation
begins with: an answer goes from there through the token that ends it. That needs no generation markers in the template
and is the same with them. It costs a pass of the template for each answer: finding all prompts in one pass, for the
templates that allow it, was 7 and 20 % faster over 1 to 4 answers a row, and needed jinja's inside; it was taken out.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from launcher.errors import SuspendedError, TrntuneError, in_first_line
from trainer.data.conversations import ChatRow, Message
from trainer.data.rows import BadRowError
from trainer.data.template_day import DAY, asks_for_day, told_day
from trainer.data.template_faults import NO_QUESTION, chosen_template, template_fault
from trainer.data.turn_end import PROBE, QUESTION, added_tokens, leading

_PLANE = 0xF0000
"""Private characters from here on stand for control tokens that a row's own text spells out."""
_PRIVATE = re.compile("[\U000f0000-\U000ffffd]")
_OWN_TEXT = ("content", "reasoning_content")
_THINK_END = "</think>"
_FEW_WORDS = 4

NOTES = {
    "thinking": "the chat template leaves out the thinking of earlier answers in {rows}",
    "system": "the chat template leaves out the system turn of {rows}",
    "changed": "the chat template changes the text of a turn in {rows}",
    "adds": "the chat template writes something before the answers of {rows}, which is trained on, such as {example}",
}


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, through the end token of its last answer."""

    text: str
    """control tokens that the row itself spells out are private characters in it"""
    answers: tuple[tuple[int, int], ...]
    """characters of each answer that is trained on, with its end token"""


class ChatTemplate:
    """A tokenizer's chat template. Raises TrntuneError for one that can't be trained with."""

    def __init__(self, tokenizer: Any, thinking: bool | None = None) -> None:
        if not tokenizer.chat_template:
            raise TrntuneError(
                "this model's tokenizer has no chat template, which conversations are written by: take the model's "
                "instruct variant, or give dataset.chat_template=FILE, a Jinja template"
            )
        self.tokenizer, self.thinking = tokenizer, thinking
        self._source = chosen_template(tokenizer)
        self._variables = dict(tokenizer.special_tokens_map)
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        self.specials = sorted((str(each.content) for each in added if each.special), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, self.specials)) or "(?!)")
        self._first_signs = sorted({each[:1] for each in self.specials})
        self._added = added_tokens(tokenizer.backend_tokenizer)
        self.counts: Counter[str] = Counter()
        """of NOTES, by rows"""
        self.examples: dict[str, str] = {}
        self.end, self._inner_end = self._ends()
        self._ways = (False, True) if thinking is not None else (False,)

    def render(self, messages: Sequence[Message], prompt: bool = False, plain: bool = False) -> str:
        """The text of ``messages``; ``prompt``: with what generation begins with; ``plain``: without enable_thinking.
        Raises BadRowError with the template's reason when it refuses them."""
        try:
            # As apply_chat_template calls it, the day apart; for each text that looks for the names of all special
            # tokens anew.
            with told_day(self._source):
                found: Any = render_jinja_template(
                    conversations=[list(messages)],
                    chat_template=self._source,
                    add_generation_prompt=prompt,
                    **{**self._variables, **self._settings(plain)},
                )
        except SuspendedError:  # a signal came
            raise
        except Exception as error:  # a template is a program of others: it may raise anything
            raise BadRowError(f"the chat template refuses it: {in_first_line(error)}") from error
        return str(found[0][0])

    def _settings(self, plain: bool) -> dict[str, Any]:
        return {} if self.thinking is None or plain else {"enable_thinking": self.thinking}

    def _ends(self) -> tuple[str, str | None]:
        """The token that ends the last answer, and the one that ends an answer before others; None: it has none."""
        asked, answered = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": PROBE}
        try:
            text, prompt = self.render([asked, answered]), self.render([asked], prompt=True)
        except BadRowError as problem:
            fault = template_fault(self.tokenizer, problem.__cause__ or problem)
            raise TrntuneError(
                f"the model's chat template can't write a question and its answer: {fault}; correct it, or give "
                "another one by dataset.chat_template=FILE"
            ) from None
        if QUESTION not in prompt:
            raise TrntuneError(f"{NO_QUESTION}; correct it, or give another one by dataset.chat_template=FILE")
        before, found, after = text.rpartition(PROBE)
        end = leading(self._added, after)
        if not found or end is None:
            raise TrntuneError(
                "the model's chat template ends an answer with no token of the tokenizer, so the model would not learn "
                "to stop; give another one by dataset.chat_template=FILE"
            )
        if not before.startswith(prompt) or self._control.search(before[len(prompt) :]):
            raise TrntuneError(
                "the model's chat template doesn't begin an answer with what add_generation_prompt writes, so answers "
                "can't be told from prompts; give another one by dataset.chat_template=FILE"
            )
        try:
            longer = self.render([asked, answered, asked, {"role": "assistant", "content": "b"}])
        except BadRowError:
            return end, None
        return end, leading(self._added, longer.partition(PROBE)[2])

    @functools.cached_property
    def remarks(self) -> list[str]:
        """What the template writes of its own, in words for the user."""
        written = self.render([{"role": "user", "content": PROBE}]).partition(PROBE)[0]
        words = [word for word in self._added.sub(" ", written).split() if word not in ("system", "user")]
        found = []
        if len(words) >= _FEW_WORDS:
            text = _short(" ".join(words))
            found.append(f"the chat template itself writes {text!r} where a row has no system turn")
        if asks_for_day(self.tokenizer.chat_template):
            found.append(f"the chat template asks for the day: it is told {DAY:%d %b %Y}, so that rows stay the same")
        return found

    def question(self, row: ChatRow) -> str:
        """The text that generation of the last answer begins with."""
        return self.render(self._guarded(row.messages[:-1]), prompt=True)

    def rendered(self, row: ChatRow) -> Rendered:
        """The text of a row with its answers. Raises BadRowError for what the template doesn't write as it is."""
        messages = self._guarded(row.messages)
        text = self.render(messages)
        if len(row.trained) > 1 and self._inner_end != self.end:
            raise BadRowError(
                f"the chat template ends its last answer with {self.end} and others with "
                f"{self._inner_end or 'no token'}, so only conversations with one answer can be trained on"
            )
        noted: set[str] = set()
        answers = tuple(self._answer(messages, place, text, noted) for place in row.trained)
        self._compare(messages, text, noted)
        self.counts.update(noted)
        return Rendered(text[: answers[-1][1]], answers)

    def _answer(self, messages: Sequence[Message], place: int, text: str, noted: set[str]) -> tuple[int, int]:
        """Where the answer at ``place`` begins and where its end token ends."""
        begin = self._begin(messages, place, text)
        if begin is None:
            raise BadRowError(
                f"turn {place + 1}: what the chat template writes before this answer isn't how it writes the whole "
                "conversation, so the answer can't be told from the prompt"
            )
        stop = text.find(self.end, begin)
        if stop < 0:
            raise BadRowError(f"turn {place + 1}: the chat template writes no {self.end} after this answer")
        before = self._before(messages[place], text[begin:stop].strip(), place, noted)
        if before and self._control.search(before):
            raise BadRowError(
                f"turn {place + 1}: the chat template writes a control token into the answer: {_short(before)!r}"
            )
        if before:
            noted.add("adds")
            self.examples.setdefault("adds", repr(_short(before)))
        return begin, stop + len(self.end)

    def _begin(self, messages: Sequence[Message], place: int, text: str) -> int | None:
        prompts = (self.render(messages[:place], prompt=True, plain=plain) for plain in self._ways)
        return next((len(prompt) for prompt in prompts if text.startswith(prompt)), None)

    def _before(self, message: Message, answer: str, place: int, noted: set[str]) -> str:
        """What stands in ``answer`` before the text of the message; its thinking is part of the text."""
        content, thinking = message["content"].strip(), message.get("reasoning_content", "").strip()
        if not answer.endswith(content) and _THINK_END in content:
            content = content.rpartition(_THINK_END)[2].strip()
            noted.add("thinking")
        if not answer.endswith(content):
            raise BadRowError(f"turn {place + 1}: the chat template doesn't write this answer as it is")
        before = answer[: len(answer) - len(content)].strip()
        if thinking and thinking not in before:
            noted.add("thinking")
        return "" if thinking and thinking in before else before

    def _compare(self, messages: Sequence[Message], text: str, noted: set[str]) -> None:
        """Whether the turns that aren't trained on are there."""
        for message in messages:
            if message["role"] != "assistant" and message["content"].strip() not in text:
                noted.add("system" if message["role"] == "system" else "changed")

    def _guarded(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with private characters for control tokens that their own text spells out: a template's are
        tokens, these are text."""
        return [
            {key: self._guard(each) if key in _OWN_TEXT else each for key, each in message.items()}
            for message in messages
        ]

    def _guard(self, text: str) -> str:
        if not text.isascii() and _PRIVATE.search(text):
            raise BadRowError("holds a private character of plane 15, which stands for control tokens here")
        guarded = text
        if any(sign in text for sign in self._first_signs):
            guarded = self._control.sub(lambda found: chr(_PLANE + self.specials.index(found.group())), text)
        if self.end in guarded:
            raise BadRowError(f"holds {self.end}, which ends an answer, and which the tokenizer never reads as text")
        return guarded

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """A rendered text in parts; True: text that spells out a control token."""
        if text.isascii():
            return [(text, False)] if text else []
        found: list[tuple[str, bool]] = []
        start = 0
        for match in _PRIVATE.finditer(text):
            found += [(text[start : match.start()], False), (self.specials[ord(match.group()) - _PLANE], True)]
            start = match.end()
        return [each for each in [*found, (text[start:], False)] if each[0]]

    def notes(self) -> list[str]:
        """What the template did to the rows that were rendered, in words for the user."""
        return [
            NOTES[key].format(rows=f"{count:,} row{'s' if count > 1 else ''}", example=self.examples.get(key))
            for key, count in sorted(self.counts.items())
        ]


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
