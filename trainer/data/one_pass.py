"""The text of a conversation and where each of its prompts ends, from one pass of its chat template.

A prompt is what the template makes of the turns before an answer, with add_generation_prompt. Rendering each costs one
pass an answer more. Most templates write turn after turn, though, and look at no turn before they come to it: what
they have written by then is, to the letter, what they write of the turns before it alone, and the rest is what follows
their loop, which says nothing of the turns. Both are made sure of: the end of the template by what is written there,
the loop by watching, for every row, how it goes through the turns. Where either can't be said, there is no answer here.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Template, nodes
from jinja2.runtime import LoopContext
from transformers.utils.chat_template_utils import _compile_jinja_template

from launcher.errors import Suspended
from trainer.data.conversations import Message

_ASKS, _MESSAGES = "add_generation_prompt", "messages"
_SETTINGS = {_ASKS, "enable_thinking"}
_ELSEWHERE = (nodes.Extends, nodes.Block, nodes.Include, nodes.Import, nodes.FromImport)
_PROBE: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2


@dataclass(frozen=True)
class Pass:
    """What one pass has shown."""

    text: str
    starts: tuple[int, ...]
    """characters that were written before each turn, and before what follows the last one"""


class OnePass:
    """A template that writes turn after turn."""

    def __init__(self, template: Template, variables: Mapping[str, Any]) -> None:
        self._template, self._variables = template, variables

    @classmethod
    def of(cls, source: str, variables: Mapping[str, Any], settings: Mapping[str, Any]) -> OnePass | None:
        """``variables``: the template's beside messages and ``settings``. None for a template that doesn't write turn
        after turn. Raises what jinja raises for one that can't be read."""
        template: Template = _compile_jinja_template(source)
        found = cls(template, variables)
        if not _ends_alike(template.environment.parse(source), {*variables, *_SETTINGS}):
            return None
        return found if found.render(_PROBE, settings) else None

    def ending(self, settings: Mapping[str, Any]) -> str | None:
        """What the template writes after any turns with add_generation_prompt; None where it can't be said."""
        found = self._watched(_PROBE[:1], {**settings, _ASKS: True})
        return None if found is None else found.text[found.starts[-1] :]

    def render(self, messages: Sequence[Message], settings: Mapping[str, Any]) -> Pass | None:
        """None where the template has looked at a turn early, or refuses the conversation: it is to be rendered as
        ever."""
        return self._watched(messages, {**settings, _ASKS: False})

    def _watched(self, messages: Sequence[Message], settings: Mapping[str, Any]) -> Pass | None:
        walk = _Walk(messages, self._template.root_render_func.__code__)
        given = {_MESSAGES: _Turns(walk, 0), "tools": None, "documents": None, **self._variables, **settings}
        try:
            for piece in self._template.root_render_func(self._template.new_context(given)):
                walk.written.append(piece)
        except Suspended:  # a signal came
            raise
        except Exception:  # told by who renders it as ever
            return None
        if walk.early or len(walk.places) != len(messages) + 1:
            return None
        ends = [0, *itertools.accumulate(map(len, walk.written))]
        return Pass("".join(walk.written), tuple(ends[place] for place in walk.places))


def _ends_alike(tree: nodes.Template, known: set[str]) -> bool:
    """Whether the last loop of the template itself is over the turns, what follows it is made of nothing but ``known``
    names, which the template doesn't set, and nothing up to there asks for the settings."""
    loops = [place for place, node in enumerate(tree.body) if isinstance(node, nodes.For)]
    if not loops or next(tree.find_all(_ELSEWHERE), None) is not None:
        return False
    loop = tree.body[loops[-1]]
    assert isinstance(loop, nodes.For)
    set_here = {each.name for each in tree.find_all(nodes.Name) if each.ctx != "load"}
    early, late = (
        {each.name for node in part for each in node.find_all(nodes.Name)}
        for part in (tree.body[: loops[-1] + 1], tree.body[loops[-1] + 1 :])
    )
    return (
        not loop.else_
        and _are_turns(loop.iter, tree, frozenset())
        and late <= known - set_here
        and not early & _SETTINGS
    )


def _are_turns(expression: nodes.Node, tree: nodes.Template, seen: frozenset[str]) -> bool:
    """Whether it is messages, a part of it, or a name for one of these and nothing else."""
    if isinstance(expression, nodes.Getitem) and isinstance(expression.arg, nodes.Slice):
        return _are_turns(expression.node, tree, seen)
    if not isinstance(expression, nodes.Name):
        return False
    name = expression.name
    if name in seen:
        return True
    times = sum(each.name == name and each.ctx != "load" for each in tree.find_all(nodes.Name))
    given = [
        each.node
        for each in tree.find_all(nodes.Assign)
        if isinstance(each.target, nodes.Name) and each.target.name == name
    ]
    return (
        (name == _MESSAGES or bool(given))
        and len(given) == times
        and all(_are_turns(each, tree, seen | {name}) for each in given)
    )


@dataclass
class _Walk:
    """How a template goes through the turns."""

    messages: Sequence[Message]
    template: Any
    """its code"""
    written: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """how many pieces were written when each turn was taken, and when none was left"""
    early: bool = False
    """whether a turn was looked at before the loop came to it, or how many there are"""

    def take(self, turn: int, caller: Any) -> None:
        """Turn number ``turn``, or the end after the last one, is asked for by code of ``caller``."""
        # Any other is no loop of the template's own, or is loop.last, which looks at the next turn.
        self.early |= caller is not self.template and caller is not LoopContext.__next__.__code__
        self.early |= turn < len(self.places)  # a second time
        self.places += [len(self.written)] * (turn + 1 - len(self.places))

    def look(self) -> Sequence[Message]:
        """At all of them."""
        self.early = True
        return self.messages


class _Turns:
    """The turns from one on, as the template has them. No list, which a filter might read without a word."""

    def __init__(self, walk: _Walk, begin: int) -> None:
        self._walk, self._next, self._begin = walk, begin, begin

    def __iter__(self) -> _Turns:
        return _Turns(self._walk, self._begin)

    def __next__(self) -> Message:
        self._walk.take(self._next, sys._getframe(1).f_code)
        self._next += 1
        try:
            return self._walk.messages[self._next - 1]
        except IndexError:
            raise StopIteration from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) and key.stop is None and key.step is None and key.start in (None, 0, 1):
            return _Turns(self._walk, self._begin + (key.start or 0))
        # The first turn is there before any answer, and one that was taken is no look ahead.
        known = isinstance(key, int) and key >= 0 and self._begin + key < max(1, len(self._walk.places))
        return self._walk.messages[self._begin + key] if known else self._all()[key]

    def __bool__(self) -> bool:
        return not self._begin or bool(self._all())

    def _all(self) -> Sequence[Message]:
        return self._walk.look()[self._begin :]

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, other: object) -> bool:
        return other in self._all()

    def __eq__(self, other: object) -> bool:
        return self._all() == other

    def __str__(self) -> str:
        return str(self._all())

    __repr__, __hash__ = __str__, None  # type: ignore[assignment]
