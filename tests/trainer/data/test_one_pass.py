"""What one pass of a chat template finds is what a pass for each prompt finds, to the character, or it isn't used."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import pytest

from tests.trainer.data.families import CONTROL
from tests.trainer.data.families import tokenizer as of_family
from trainer.data.chat import ChatTemplate
from trainer.data.conversations import ChatRow, Message, conversation
from trainer.data.rows import BadRow

LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = LOOP + ASKS


def with_mark(expression: str) -> str:
    """What an expression gives stands behind each question."""
    return PLAIN.replace("{{ m.content }}", "{{ m.content }}{{ (" + expression + ") if m.role == 'user' else '' }}")


IN_ORDER = {
    "plain": PLAIN,
    "a name for the rest": "{% set rest = messages %}{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% set rest = messages[1:] %}{% endif %}" + PLAIN.replace("in messages", "in rest"),
    "messages without their first": "{{ messages[0].content }}{% set messages = messages[1:] %}" + PLAIN,
    "a look back": with_mark("messages[loop.index0].role + ('a' if loop.first else loop.previtem.role)"),
    "the next turn, of tools only": PLAIN.replace(
        "<|im_end|>",
        "{% if m.role == 'tool' and (loop.last or messages[loop.index0 + 1].role) %}x{% endif %}<|im_end|>",
    ),
    "a count in a namespace": "{% set ns = namespace(n=0) %}"
    + PLAIN.replace("{{ m.role }}", "{% set ns.n = ns.n + 1 %}{{ m.role }}{{ ns.n if m.role == 'user' else '' }}"),
    "an end that asks for thinking": PLAIN + "{% if enable_thinking is false %}{{ '' }}{% endif %}",
    "a role that comes twice": PLAIN.replace(
        "{{ m.role }}",
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}{{ m.role }}",
    ),
    "a macro": "{% macro text(m) %}{% for c in [m.content] %}{{ c }}{% endfor %}{% endmacro %}"
    + PLAIN.replace("{{ m.content }}", "{{ text(m) }}"),
}
"""Templates that one pass is enough for."""
LOOKS = {
    "the last turn": with_mark("'' if messages[-1].content else ''"),
    "how many there are": "{{ messages | length > 0 }}" + PLAIN,
    "loop.last": with_mark("'' if loop.last else ''"),
    "loop.length": with_mark("'' if loop.length else ''"),
    "loop.nextitem": with_mark("'' if loop.nextitem is defined else ''"),
    "a second loop": "{% for m in messages %}{{ '' }}{% endfor %}" + PLAIN,
    "a loop that selects": PLAIN.replace("in messages", "in messages if m.role != 'system'"),
    "a filter": "{{ messages | map(attribute='role') | join | length > 0 }}" + PLAIN,
    "all as text": "{{ messages | string | length > 0 }}" + PLAIN,
    "all as JSON": "{{ messages | tojson | length > 0 }}" + PLAIN,
    "all compared": "{{ messages == [] }}" + PLAIN,
    "all backwards": "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n > 0 }}" + PLAIN,
    "whether more follow": "{{ '' if messages[1:] else '' }}" + PLAIN,
    "an end that depends on the turns": "{% set ns = namespace(r='') %}"
    + LOOP.replace("{{ m.role }}", "{% set ns.r = m.content %}{{ m.role }}")
    + ASKS.replace("assistant", "assistant{{ '' if ns.r else '' }}"),
    "an end that names a turn": LOOP + ASKS.replace("assistant", "assistant{{ '' if messages[0].content else '' }}"),
    "turns that know of the prompt": with_mark("'' if add_generation_prompt else ''"),
    "a loop in a block that is held back": "{% set all %}" + LOOP + "{% endset %}{{ all }}" + ASKS,
    "something else for one turn": LOOP.replace("{% endfor %}", "{% else %}{{ '' }}{% endfor %}") + ASKS,
    "messages of its own": "{% set messages = [messages[0]] + messages[1:] %}" + PLAIN,
}
"""Templates that look ahead, or may."""


def rows() -> list[ChatRow]:
    """Conversations of 1 to 4 exchanges, some with a system turn, one with two answers in a row, thinking, marks."""
    draw = random.Random(3)
    found = []
    for number in range(24):
        said: list[Message] = [{"role": "system", "content": "Short."}] if number % 3 == 0 else []
        for _ in range(draw.randint(1, 4)):
            thought = "<think>\nhm\n</think>\n\n" if draw.random() < 0.2 else ""
            said.append({"role": "user", "content": " " * draw.randint(0, 1) + "a" * draw.randint(1, 9)})
            said.append({"role": "assistant", "content": f"{thought}{'<|im_start|>b' * draw.randint(1, 2)}"})
        if number % 8 == 5:
            said.append({"role": "assistant", "content": "c"})
        found.append(conversation(said, 0, None, 1))
    return found


def outcome(template: ChatTemplate, row: ChatRow) -> Any:
    """The text and its answers, or why there is none."""
    try:
        return template.rendered(row)
    except BadRow as problem:
        return str(problem)


def both(tokenizer: Any, thinking: bool | None) -> tuple[ChatTemplate, ChatTemplate]:
    """The template as it is, and one that renders each prompt."""
    slow = ChatTemplate(tokenizer, thinking)
    slow._pass = None
    return ChatTemplate(tokenizer, thinking), slow


def with_template(own: str) -> Any:
    tokenizer = copy.copy(of_family("marked"))
    tokenizer.chat_template = own
    return tokenizer


CASES = [
    *((f"family {name}", of_family(name), name in ("llama3", "gemma", "smollm2", "marked")) for name in CONTROL),
    *((name, with_template(own), True) for name, own in IN_ORDER.items()),
    *((name, with_template(own), False) for name, own in LOOKS.items()),
]


@pytest.mark.parametrize(("tokenizer", "once"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_one_pass_finds_what_a_pass_for_each_prompt_finds(tokenizer, once, monkeypatch):
    for thinking in (None, False):
        fast, slow = both(tokenizer, thinking)
        assert (fast._pass is not None) == once
        expected = [outcome(slow, row) for row in rows()]
        passes: list[int] = []
        render = fast.render
        monkeypatch.setattr(fast, "render", lambda *given, r=render, p=passes, **more: p.append(1) or r(*given, **more))
        assert [outcome(fast, row) for row in rows()] == expected
        assert fast.notes() == slow.notes()
        refused = sum(isinstance(each, str) for each in expected)
        assert len(expected) - refused > 5
        # Those that are refused are rendered as ever.
        assert len(passes) <= 9 * refused if once else len(passes) > len(expected)
        monkeypatch.undo()


def test_a_row_whose_tool_turn_has_the_template_look_ahead_is_rendered_as_ever():
    fast, slow = both(with_template(IN_ORDER["the next turn, of tools only"]), None)
    said: list[Message] = [{"role": role, "content": "x"} for role in ("user", "tool", "user", "assistant")]
    assert fast._pass is not None
    assert fast._pass.render(said, {}) is None
    row = ChatRow(tuple(said), (3,))
    assert outcome(fast, row) == outcome(slow, row)


def test_every_prompt_of_a_pass_is_the_templates_own():
    """The claim itself, of all places and not of answers only."""
    for own, given in itertools.product(IN_ORDER.values(), rows()):
        template = ChatTemplate(with_template(own))
        assert template._pass is not None
        found = template._pass.render(given.messages, {})
        if found is not None:
            for place in range(1, len(given.messages) + 1):
                prompt = found.text[: found.starts[place]] + template._prompt_ends[0]
                assert prompt == template.render(given.messages[:place], prompt=True)
