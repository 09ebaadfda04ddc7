"""Conversations: loss on every assistant turn and its end token, and on nothing else, token by token."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import TrntuneError
from tests.trainer.data.conftest import config_for
from tests.trainer.data.families import BYTES, CONTROL, TEMPLATES
from tests.trainer.data.families import tokenizer as of_family
from trainer.data import chat
from trainer.data.chat_encoder import ChatEncoder
from trainer.data.conversations import ChatRow, conversation, turns
from trainer.data.prepare import data_notes, prepare
from trainer.data.rows import BadRowError
from trainer.data.tokenize import IGNORE, end_ids, prompt_ids, tokenize

TURNS = (
    ("user", "What is a river?"),
    ("assistant", "It is water."),
    ("user", "And a lake?"),
    ("assistant", "Water that stays."),
)
FAMILIES = list(CONTROL)


def messages(*given: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in given]


def row_of(*given: tuple[str, str], thinking: bool | None = None) -> ChatRow:
    return conversation(turns(messages(*given), "messages", False), 0, thinking, 1)


def encoded(tokenizer: Any, row: ChatRow) -> tuple[list[int], list[list[int]]]:
    """All ids, and those that are trained on, answer by answer."""
    [prompt], [rest], [spans] = ChatEncoder(tokenizer, row.thinking).encode([row])
    ids = [*prompt, *rest]
    [example] = tokenize([row], "plain", "response", 4096, tokenizer).examples
    assert example.input_ids == ids
    trained = {place for begin, end in spans for place in range(begin, end)}
    assert example.labels == [each if place in trained else IGNORE for place, each in enumerate(ids)]
    return ids, [ids[begin:end] for begin, end in spans]


def by_template(tokenizer: Any, given: list[dict[str, Any]], **more: Any) -> list[int]:
    """As generation tokenizes them."""
    ids: list[int] = tokenizer.apply_chat_template(given, tokenize=True, strftime_now=chat._DATE.strftime, **more)
    return ids


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


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """60 conversations of 1 to 4 exchanges."""
    path = tmp_path / "chats.jsonl"
    rows = []
    for number in range(60):
        exchanges = [
            turn
            for i in range(number % 4 + 1)
            for turn in (("user", f"question {number} {i}"), ("assistant", "x" * (number % 17 + 1)))
        ]
        rows.append({"messages": messages(("system", "Short."), *exchanges)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained_text(tokenizer: Any, example: Any) -> str:
    return str(tokenizer.decode([label for label in example.labels if label != IGNORE]))


@pytest.mark.parametrize("streaming", ["true", "false"])
@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_run_trains_on_the_answers_of_its_file(chats, tokenizer, packing, streaming):
    config = config_for(
        chats, f"dataset.packing={packing}", f"dataset.streaming={streaming}", "training.max_length=512"
    )
    data = prepare(config, chats, tokenizer)
    assert data.report.format == "messages"
    assert data.report.found == "format messages, found from the columns messages"
    records = [json.loads(line)["messages"] for line in chats.read_text().splitlines()]
    examples = [example for row in [*data.train, *data.eval] for example in row]
    assert len(examples) == 60
    for example in examples:
        answers = [each["content"] for each in records[example.line - 1] if each["role"] == "assistant"]
        assert trained_text(tokenizer, example) == "".join(f"{answer}<|im_end|>" for answer in answers)
    trained = sum(label != IGNORE for row in data.train for example in row for label in example.labels[1:])
    assert data.train.sums().trained == trained
    again = prepare(config, chats, tokenizer)
    assert (again.digest(), list(again.train), again.report) == (data.digest(), list(data.train), data.report)
    other = prepare(config_for(chats, "dataset.loss_on=all", "training.max_length=512"), chats, tokenizer)
    assert all(example.labels == example.input_ids for row in other.train for example in row)


def test_a_long_conversation_is_cut_at_a_turn_and_a_long_first_answer_loses_its_end(chats, tokenizer):
    with chats.open("a") as stream:
        for length, asked in ((400, "a"), (3, "a" * 400)):
            row = messages(("user", asked), ("assistant", "y" * length), ("user", "b"), ("assistant", "c"))
            stream.write(json.dumps({"messages": row}) + "\n")
    whole = prepare(config_for(chats, "training.max_length=2048", "dataset.packing=false"), chats, tokenizer)
    data = prepare(config_for(chats, "training.max_length=128", "dataset.packing=false"), chats, tokenizer)
    lengths = {e.line: len(e.input_ids) for rows in (whole.train, whole.eval) for row in rows for e in row}
    cut = [e for rows in (data.train, data.eval) for row in rows for e in row if len(e.input_ids) < lengths[e.line]]
    assert len(cut) > 20
    for example in cut:
        text = trained_text(tokenizer, example)
        if example.line == 61:
            assert text == "y" * text.count("y")
            assert len(example.input_ids) == 128
        else:
            assert text.endswith("<|im_end|>")
            assert example.labels[-1] == 2
    assert (data.report.truncated, data.report.turns_cut, data.report.dropped) == (1, len(cut) - 1, 1)
    trained = sum(label != IGNORE for row in data.train for example in row for label in example.labels[1:])
    assert data.train.sums().trained == trained
    assert data_notes(data.report)[:3] == [
        "1 examples were cut at training.max_length, in an answer",
        f"{len(cut) - 1} conversations lost their last turns at training.max_length",
        "1 examples were dropped: their prompt alone fills training.max_length",
    ]


def test_rows_that_the_template_refuses_stop_the_run_or_are_skipped_and_counted(chats):
    tokenizer = of_family("gemma")
    with pytest.raises(TrntuneError, match=r"chats\.jsonl:1: the chat template refuses it: there is no system role"):
        prepare(config_for(chats), chats, tokenizer)
    with chats.open("a") as stream:
        for number in range(20):
            row = messages(("user", f"question {number}"), ("assistant", "x"))
            stream.write(json.dumps({"messages": row}) + "\n")
    data = prepare(config_for(chats, "dataset.on_bad_row=skip"), chats, tokenizer)
    assert (data.report.rows_read, data.report.rows_skipped) == (20, 60)


def test_a_base_model_without_a_template_is_told_what_to_do(chats, tokenizer_without_template):
    with pytest.raises(TrntuneError, match=r"has no chat template.*dataset\.chat_template=FILE"):
        prepare(config_for(chats), chats, tokenizer_without_template)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_is_rendered_as_transformers_does_it(family):
    tokenizer = of_family(family)
    template = ChatEncoder(tokenizer, None).template
    for given, prompt in ((messages(*TURNS), False), (messages(*TURNS[:3]), True)):
        expected = tokenizer.apply_chat_template(
            given, tokenize=False, add_generation_prompt=prompt, strftime_now=chat._DATE.strftime
        )
        assert template.render(given, prompt) == expected
