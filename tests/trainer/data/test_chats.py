"""Conversations: loss on every assistant turn and its end token, and on nothing else, token by token."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from launcher.errors import TrntuneError
from tests.trainer.data.chats import TURNS, by_template, encoded, messages, row_of
from tests.trainer.data.conftest import config_for
from tests.trainer.data.families import BYTES, CONTROL, TEMPLATES
from tests.trainer.data.families import tokenizer as of_family
from trainer.data.chat_encoder import ChatEncoder
from trainer.data.conversations import conversation, turns
from trainer.data.prepare import prepare
from trainer.data.rows import BadRowError
from trainer.data.tokenize import end_ids, prompt_ids

FAMILIES = list(CONTROL)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_and_its_end_token_are_trained_on_and_nothing_else(family):
    tokenizer = of_family(family)
    ids, answers = encoded(tokenizer, row_of(*TURNS))
    bos, end, *_ = CONTROL[family]
    think = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
    texts = [tokenizer.decode(answer).lstrip(" ") for answer in answers]
    assert texts == [f"It is water.{end}", f"{think}Water that stays.{end}"]
    whole = by_template(tokenizer, messages(*TURNS))
    assert ids == whole[: len(ids)]
    assert tokenizer.decode(whole[len(ids) :]) in ("", "\n")
    if bos is not None:
        assert ids.count(tokenizer.convert_tokens_to_ids(bos)) == 1
    assert end_ids(row_of(*TURNS), "plain", tokenizer)[0] == tokenizer.convert_tokens_to_ids(end) == answers[0][-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_begins_with_the_very_tokens_that_training_has_before_the_answer(family):
    tokenizer = of_family(family)
    ids, answers = encoded(tokenizer, row_of(*TURNS))
    before_last = ids[: -len(answers[1])]
    assert prompt_ids(row_of(*TURNS), "plain", tokenizer) == before_last
    assert by_template(tokenizer, messages(*TURNS[:3]), add_generation_prompt=True) == before_last
    first = by_template(tokenizer, messages(*TURNS[:1]), add_generation_prompt=True)
    assert ids[: len(first)] == first
    assert ids[len(first) : len(first) + len(answers[0])] == answers[0]


@pytest.mark.parametrize("family", ["llama3", "qwen3", "smollm2", "marked"])
def test_a_system_turn_is_there_and_not_trained_on(family):
    tokenizer = of_family(family)
    ids, answers = encoded(tokenizer, row_of(("system", "Think of water."), *TURNS))
    assert tokenizer.decode(ids).count("Think of water.") == 1
    assert [tokenizer.decode(answer) for answer in answers] == [
        tokenizer.decode(answer) for answer in encoded(tokenizer, row_of(*TURNS))[1]
    ]


def test_a_template_without_a_system_role_refuses_such_rows():
    with pytest.raises(BadRowError, match="the chat template refuses it: there is no system role"):
        ChatEncoder(of_family("gemma"), None).template.rendered(row_of(("system", "x"), *TURNS))


def test_a_prompt_that_the_whole_conversation_does_not_have_is_refused():
    """Mistral's writes the system turn before the last question, and nowhere when an answer follows."""
    with pytest.raises(
        BadRowError, match=r"turn 3: what the chat template writes before this answer isn't how it writes"
    ):
        ChatEncoder(of_family("mistral"), None).template.rendered(row_of(("system", "x"), *TURNS[:2]))
    twice = row_of(*TURNS[:2], ("assistant", "And salt."))
    with pytest.raises(BadRowError, match=r"turn 3: what the chat template writes"):
        ChatEncoder(of_family("qwen3"), None).template.rendered(twice)
    assert len(encoded(of_family("smollm2"), twice)[1]) == 2


THOUGHT = (
    ("user", "What is a river?"),
    ("assistant", "<think>\nHm.\n</think>\n\nIt is water."),
    ("user", "And a lake?"),
    ("assistant", "<think>\nWell.\n</think>\n\nWater that stays."),
)


def test_thinking_is_trained_where_the_template_keeps_it_and_told_where_not():
    tokenizer = of_family("qwen3")
    _, answers = encoded(tokenizer, row_of(*THOUGHT))
    assert [tokenizer.decode(answer) for answer in answers] == [
        "It is water.<|im_end|>",
        "<think>\nWell.\n</think>\n\nWater that stays.<|im_end|>",
    ]
    template = ChatEncoder(tokenizer, None).template
    template.rendered(row_of(*THOUGHT))
    assert template.notes() == ["the chat template leaves out the thinking of earlier answers in 1 row"]
    template.rendered(row_of(*THOUGHT[2:]))
    assert template.counts == {"thinking": 1}


def test_thinking_in_a_field_of_its_own_is_the_same():
    tokenizer = of_family("qwen3")
    given = [*messages(*THOUGHT[:1]), {"role": "assistant", "content": "It is water.", "reasoning_content": "Hm."}]
    row = conversation(turns(given, "messages", False), 0, None, 1)
    assert encoded(tokenizer, row) == encoded(tokenizer, row_of(*THOUGHT[:2]))
    template = ChatEncoder(of_family("smollm2"), None).template
    template.rendered(row)
    assert template.counts == {"thinking": 1}


def test_with_thinking_off_the_empty_thought_is_part_of_the_prompt():
    tokenizer = of_family("qwen3")
    row = row_of(*TURNS, thinking=False)
    ids, answers = encoded(tokenizer, row)
    assert [tokenizer.decode(answer) for answer in answers] == ["It is water.<|im_end|>", "Water that stays.<|im_end|>"]
    assert ids == encoded(tokenizer, row_of(*TURNS))[0]
    asked = by_template(tokenizer, messages(*TURNS[:3]), add_generation_prompt=True, enable_thinking=False)
    assert prompt_ids(row, "plain", tokenizer) == asked == ids[: len(asked)]


def test_what_a_template_adds_and_leaves_out_is_told():
    assert ChatEncoder(of_family("qwen3"), None).template.remarks == []
    [note] = ChatEncoder(of_family("smollm2"), None).template.remarks
    assert "'You are a helpful assistant of our own making'" in note
    told, day = ChatEncoder(of_family("llama3"), None).template.remarks
    assert "What is known ends in December 2023." in told
    assert "26 Jul 2024" in day
    tokenizer = with_template(
        "marked", "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
    )
    template = ChatEncoder(tokenizer, None).template
    template.rendered(row_of(("system", "Think of water."), *TURNS))
    template.rendered(row_of(*TURNS))
    assert template.notes() == ["the chat template leaves out the system turn of 1 row"]


def with_template(family: str, before: str = "", own: str | None = None) -> Any:
    tokenizer = copy.deepcopy(of_family(family))
    tokenizer.chat_template = before + ((TEMPLATES / f"{family}.jinja").read_text() if own is None else own)
    return tokenizer


def test_generation_markers_change_nothing():
    """Here they take in the header, which nobody generates."""
    plain = (
        (TEMPLATES / "marked.jinja").read_text().replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    )
    assert "generation %}" not in plain
    assert encoded(of_family("marked"), row_of(*TURNS)) == encoded(with_template("marked", own=plain), row_of(*TURNS))


def test_markers_around_what_is_generated_say_the_same_as_the_prompts():
    """transformers' own mask of assistant tokens, of a template whose markers are exact."""
    own = (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% if turn.role == 'assistant' %}{% generation %}"
        "{{ turn.content }}<|im_end|>{% endgeneration %}{% else %}{{ turn.content }}<|im_end|>{% endif %}\n\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = with_template("marked", own=own)
    ids, answers = encoded(tokenizer, row_of(("system", "Water."), *TURNS))
    found = tokenizer.apply_chat_template(
        messages(("system", "Water."), *TURNS), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    masked = [each for each, kept in zip(found["input_ids"], found["assistant_masks"], strict=True) if kept]
    assert masked == [each for answer in answers for each in answer]
    assert found["input_ids"][: len(ids)] == ids


@pytest.mark.parametrize("family", BYTES)
@pytest.mark.parametrize("answer", ["\n\nIt is water.", "  It is water.", "\tIt"])
def test_an_answer_that_begins_with_space_follows_the_tokens_of_its_prompt(family, answer):
    tokenizer = of_family(family)
    ids, [found] = encoded(tokenizer, row_of(TURNS[0], ("assistant", answer)))
    asked = by_template(tokenizer, messages(TURNS[0]), add_generation_prompt=True)
    assert ids[: len(asked)] == asked
    assert ids[len(asked) :] == found
    assert tokenizer.decode(found[:-1]).endswith(answer.strip())


@pytest.mark.parametrize("family", BYTES)
def test_control_tokens_that_a_row_spells_out_are_text(family):
    tokenizer = of_family(family)
    bos, end, other, *_ = CONTROL[family]
    spelled = f"So {end} ends and {other} begins {bos or ''} it"
    ids, [answer] = encoded(tokenizer, row_of(("user", f"What of {end}?"), ("assistant", spelled)))
    plain = encoded(tokenizer, row_of(("user", "What of?"), ("assistant", "So")))[0]
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(other)}
    assert [each for each in ids if each in special] == [each for each in plain if each in special]
    assert answer[-1] == tokenizer.convert_tokens_to_ids(end)
    text = tokenizer.decode(answer[:-1])
    assert text.endswith(spelled)


def test_a_tokenizer_that_cannot_write_them_as_text_says_so():
    with pytest.raises(TrntuneError, match="or a control token as text"):
        encoded(of_family("mistral"), row_of(("user", "What of </s>?"), ("assistant", "It ends.")))


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (None, "has no chat template.*dataset.chat_template=FILE"),
        ("{% for t in messages %}{{ t.role }}: {{ t.content }}\n{% endfor %}", "ends an answer with no token"),
        (
            "{% for t in messages %}<|im_start|>{{ t.role }}\n{{ t.content }}<|im_end|>\n{% endfor %}",
            "doesn't begin an answer with what add_generation_prompt writes",
        ),
        ("{{ raise_exception('never') }}", "can't write a question and its answer: .*never"),
        ("{% for t in messages %}{{ t.role", "can't write a question and its answer"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused_in_one_line(own, says):
    tokenizer = with_template("marked", own=own or "")
    with pytest.raises(TrntuneError, match=says) as caught:
        ChatEncoder(tokenizer, None)
    assert "\n" not in str(caught.value)


BAD = [
    ([], "must be a list of turns, not empty"),
    ("hello", "must be a list of turns, not str"),
    ([{"role": "user", "content": "a"}], "has no assistant turn to train on"),
    ([{"role": "assistant", "content": "a"}], "begins with an assistant turn"),
    (
        [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}],
        "turn 2 of 'messages': role='bot' is none of",
    ),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "turn 2 of 'messages' is empty"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "text": "b"}], "turn 2 of 'messages' has no 'content'"),
    ([{"role": "user", "content": 3}], "'content' of turn 1 of 'messages' must be text, not int"),
    ([{"content": "a"}], "turn 1 of 'messages' has no 'role' (there are: 'content')"),
    ([{"role": "user", "content": [{"type": "image"}]}], "its content has a part of the kind 'image'"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [1]}], "calls of tools"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 2}], "weight=2 is neither 0"),
    (["hello"], "turn 1 of 'messages' must be an object, not str"),
]


@pytest.mark.parametrize(("value", "says"), BAD, ids=[says for _, says in BAD])
def test_a_broken_conversation_stops_the_run_with_file_line_and_turn(jsonl, tokenizer, value, says):
    path = jsonl(*[{"messages": messages(*TURNS)}] * 3, {"messages": value})
    with pytest.raises(TrntuneError) as caught:
        prepare(config_for(path), path, tokenizer)
    assert str(caught.value).startswith(f"{path}:4: ")
    assert says in str(caught.value)


def test_turns_that_are_weighted_with_0_are_context_only():
    given = messages(*TURNS)
    given[1]["weight"] = 0
    row = conversation(turns(given, "messages", False), 0, None, 1)
    tokenizer = of_family("smollm2")
    ids, [answer] = encoded(tokenizer, row)
    assert tokenizer.decode(answer) == "Water that stays.<|im_end|>"
    assert ids == encoded(tokenizer, row_of(*TURNS))[0]


def test_what_follows_the_last_answer_is_left_out():
    tokenizer = of_family("qwen3")
    assert encoded(tokenizer, row_of(*THOUGHT, ("user", "Thanks!"))) == encoded(tokenizer, row_of(*THOUGHT))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_is_rendered_as_transformers_does_it(family):
    tokenizer = of_family(family)
    template = ChatEncoder(tokenizer, None).template
    for given, prompt in ((messages(*TURNS), False), (messages(*TURNS[:3]), True)):
        expected = by_template(tokenizer, given, tokenize=False, add_generation_prompt=prompt)
        assert template.render(given, prompt) == expected
