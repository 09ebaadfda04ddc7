"""The token that ends an answer: the one by which a chat template ends a turn, which needn't be the tokenizer's EOS."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from launcher.errors import SuspendedError

QUESTION, PROBE = "qzxw", "qzxv"
"""Stand for a question and an answer in what a template is tried with."""


def tried(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str | None:
    """What the tokenizer's chat template makes of ``messages``; None where there is none, or none that can be chosen
    or rendered: what is wrong with it is told where it is used."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except SuspendedError:  # a signal came
        raise
    except Exception:  # a template is a program of others
        return None
    return text


def added_tokens(backend: Any) -> re.Pattern[str]:
    """Finds the added tokens of a tokenizer, the longest of those that begin at a place."""
    contents = [str(each.content) for each in backend.get_added_tokens_decoder().values()]
    return re.compile("|".join(map(re.escape, sorted(contents, key=len, reverse=True))) or "(?!)")


def leading(tokens: re.Pattern[str], text: str) -> str | None:
    """The token that ``text`` begins with, spaces apart; None where it begins with anything else."""
    found = tokens.search(text)
    return found.group() if found and not text[: found.start()].strip() else None


def turn_end(tokenizer: Any) -> int | None:
    """The token that the tokenizer's chat template writes behind an answer. None where there is no template, none that
    can be chosen or rendered, or one that ends an answer with no token."""
    text = tried(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}])
    if text is None:
        return None
    _, found, after = text.rpartition(PROBE)
    end = leading(added_tokens(tokenizer.backend_tokenizer), after) if found else None
    return None if end is None else int(tokenizer.backend_tokenizer.token_to_id(end))


def ends_of(tokenizer: Any) -> list[int]:
    """The tokens that an answer may end at: the tokenizer's EOS, and what its chat template ends a turn with."""
    return list(dict.fromkeys(each for each in (tokenizer.eos_token_id, turn_end(tokenizer)) if each is not None))


def until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """``ids`` up to the first of ``ends``, which is left out."""
    return list(itertools.takewhile(lambda each: each not in ends, ids))
