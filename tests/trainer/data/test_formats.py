"""What rows are is found from their columns, or said to be unclear; and how each is written."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest

from launcher.errors import TrntuneError
from tests.trainer.data.conftest import config_for
from tests.trainer.data.families import tokenizer as of_family
from tests.trainer.data.files import prepared, write_jsonl
from tests.trainer.data.test_chat_runs import trained_text
from trainer.data import encoder as tokenizing
from trainer.data.prepare import data_notes, prepare
from trainer.data.tokenize import IGNORE, end_ids, prompt_ids
from trainer.fetch.tiny_llama import byte_tokenizer

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHAREGPT = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
FITTING = [
    ({"instruction": "a", "response": "b"}, "instruction", "instruction, response"),
    ({"instruction": "a", "context": "c", "response": "b", "category": "x"}, "instruction", "instruction, response"),
    ({"messages": TURNS, "id": 3}, "messages", "messages"),
    ({"conversations": TURNS}, "messages", "conversations"),
    ({"conversations": SHAREGPT}, "sharegpt", "conversations"),
    ({"conversation": SHAREGPT}, "sharegpt", "conversation"),
    ({"prompt": "a", "completion": "b"}, "prompt_completion", "prompt, completion"),
    ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt_completion", "prompt, completion"),
    ({"instruction": "a", "input": "", "output": "b"}, "alpaca", "instruction, output"),
    ({"text": "a b"}, "text", "text"),
]


def numbered(record: dict[str, Any], count: int = 20) -> list[dict[str, Any]]:
    """Rows like ``record``, no two of which ask the same."""
    texts = [re.sub('"a(?=[": ])', f'"a{number}', json.dumps(record)) for number in range(count)]
    return [json.loads(text) for text in texts]


@pytest.mark.parametrize(("record", "name", "columns"), FITTING, ids=[str(name) for _, name, _ in FITTING])
def test_the_format_is_found_and_trains_on_the_answer(tmp_path, tokenizer, record, name, columns):
    write_jsonl(tmp_path / "rows.jsonl", numbered(record))
    data = prepared(tokenizer, tmp_path / "rows.jsonl", "dataset.packing=false")
    assert data.report.format == name
    assert data.report.found == f"format {name}, found from the columns {columns}"
    for row in data.train:
        for example in row:
            text = trained_text(tokenizer, example)
            assert text == (tokenizer.decode(example.input_ids) if name == "text" else "b<|im_end|>")
    given = prepared(tokenizer, tmp_path / "rows.jsonl", "dataset.packing=false", f"dataset.format={name}")
    assert given.report.found == f"format {name}, as dataset.format says"
    assert given.digests() == data.digests()


UNCLEAR = [
    (
        {"text": "a", "messages": TURNS},
        r"columns \(text, messages\) fit text and messages; say which by dataset\.format=",
    ),
    ({"instruction": "a", "response": "b", "output": "b"}, "fit instruction and alpaca"),
    (
        {"question": "a", "answer": "b"},
        r"columns \(question, answer\) fit no format; nearest is instruction, which lacks instruction, response",
    ),
    ({"body": "a"}, "nearest is text, which lacks text"),
    (
        {"data": {"q": "x", "more": {"y": "z"}}, "id": 3},
        r"columns \(data\.q, data\.more\.y, id\) fit no format; nearest is instruction",
    ),
    ({"dialogue": TURNS}, "nearest is messages, which lacks messages"),
    ({"instruction": "a", "input": "", "outputs": "b"}, "nearest is alpaca, which lacks output"),
    ({"prompt": "a", "complete": "b"}, "nearest is prompt_completion, which lacks completion"),
    ({"message": TURNS}, "nearest is messages, which lacks messages"),
    ({"messages": "a text"}, "nearest is messages, whose messages are of another kind"),
    ({"instruction": "a", "response": 3}, "nearest is instruction, whose instruction, response are of another kind"),
]


@pytest.mark.parametrize(("record", "says"), UNCLEAR, ids=[says for _, says in UNCLEAR])
def test_two_formats_or_none_is_an_error_that_names_columns_and_the_nearest(tmp_path, tokenizer, record, says):
    write_jsonl(tmp_path / "rows.jsonl", numbered(record))
    with pytest.raises(TrntuneError, match=says) as caught:
        prepared(tokenizer, tmp_path / "rows.jsonl")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "rows.jsonl") in str(caught.value)


PASSAGE = "dataset.prompt_template='{passage} {prompt}'"
AS_INSTRUCTION = ("dataset.format=instruction", "dataset.columns.response=output", "dataset.columns.context=passage")
LOST = {
    "alpaca": (
        {"instruction": "a", "input": "", "output": "b", "passage": "p"},
        (),
        "take it with dataset.format=instruction dataset.columns.response=output dataset.columns.context=passage, or",
        AS_INSTRUCTION,
    ),
    "text": (
        {"prompt": "a", "completion": "b", "passage": "p"},
        (),
        "write the prompt by a dataset.prompt_template that names it, {passage}, or",
        (PASSAGE,),
    ),
    "turns": (
        {"prompt": TURNS[:1], "completion": TURNS[1:], "passage": ["p"]},
        (),
        "write it into the turns of the prompt, or",
        ("dataset.columns.context=null",),
    ),
    "template": (
        {"prompt": "a", "response": "b", "passage": "p"},
        ("dataset.prompt_template='Q: {prompt}'",),
        "write it as {passage} into dataset.prompt_template, or",
        (PASSAGE,),
    ),
}


@pytest.mark.parametrize(("record", "settings", "remedy", "by"), LOST.values(), ids=LOST)
def test_a_context_that_a_format_has_no_place_for_stops_the_run(tmp_path, tokenizer, record, settings, remedy, by):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(numbered(record)))
    with pytest.raises(TrntuneError) as caught:
        prepared(tokenizer, path, *settings)
    assert str(caught.value).startswith(f"{path}: field 'passage' looks like a context and would be left out, ")
    assert str(caught.value).endswith(f"{remedy} leave it out with dataset.columns.context=null")
    left_out = prepared(tokenizer, path, *settings, "dataset.columns.context=null").report
    assert list(left_out.unused) == ["passage"]
    found = prepared(tokenizer, path, *by)
    assert list(found.report.unused) == (["passage"] if "context=null" in by[0] else [])
    if by == (PASSAGE,):
        assert all("p a" in tokenizer.decode(example.input_ids) for row in found.train for example in row)


@pytest.mark.parametrize(
    ("record", "unused"),
    [
        ({"messages": TURNS, "context": "c"}, ["context"]),
        ({"text": "a b", "document": "c", "id": 3}, ["document"]),
        ({"instruction": "a", "input": "i", "output": "b", "passage": "p"}, ["passage"]),
        ({"instruction": "a", "response": "b", "context": "c", "passage": "p"}, ["passage"]),
    ],
)
def test_other_fields_that_are_not_read_are_only_told(tmp_path, tokenizer, record, unused):
    write_jsonl(tmp_path / "rows.jsonl", numbered(record))
    report = prepared(tokenizer, tmp_path / "rows.jsonl").report
    assert list(report.unused) == unused
    assert data_notes(report)[-1].startswith(f"fields of the data that are not used: '{unused[0]}' ")


def test_other_names_are_mapped(tmp_path, tokenizer):
    write_jsonl(tmp_path / "rows.jsonl", numbered({"talk": TURNS, "text": "a"}))
    data = prepared(tokenizer, tmp_path / "rows.jsonl", "dataset.columns.messages=talk", "dataset.format=messages")
    assert data.report.columns == ["talk"]
    write_jsonl(tmp_path / "rows.jsonl", numbered({"question": "a", "answer": "b"}))
    named = ("dataset.columns.prompt=question", "dataset.columns.completion=answer")
    assert prepared(tokenizer, tmp_path / "rows.jsonl", *named).report.format == "prompt_completion"


def test_a_broken_first_row_does_not_change_what_the_others_are(tmp_path, tokenizer):
    write_jsonl(tmp_path / "rows.jsonl", [{"messages": 3}, *numbered({"messages": TURNS})])
    with pytest.raises(TrntuneError, match=r"rows\.jsonl:1: field 'messages' must be a list of turns, not int"):
        prepared(tokenizer, tmp_path / "rows.jsonl")


def test_rows_of_which_none_can_be_read_are_named(tmp_path, tokenizer):
    (tmp_path / "rows.jsonl").write_text("x\ny\n")
    with pytest.raises(TrntuneError, match=r"rows\.jsonl:1: not JSON"):
        prepared(tokenizer, tmp_path / "rows.jsonl")


def test_rows_of_instructions_are_what_they_were_before_there_were_other_formats(tmp_path, monkeypatch):
    """Digests and tokens of the commit before."""
    path = tmp_path / "rows.jsonl"
    answers = ["x" * (i % 40 + 1) + " <|im_end|>" for i in range(60)]
    rows = [{"instruction": f"question {i}", "context": "c" * (i % 3), "response": answers[i]} for i in range(60)]
    write_jsonl(path, rows)
    monkeypatch.setattr(tokenizing, "version", lambda name: "0")
    golden = {
        (): ("577b69b3b9da", "2606cf1f913f"),
        ("dataset.prompt=chat",): ("67746347dfdf", "8cdbfb23ef47"),
        ("dataset.loss_on=all", "dataset.packing=false"): ("7f088840e545", "f33ee2a8ad8d"),
    }
    for settings, expected in golden.items():
        tokenizer = byte_tokenizer(4096)
        # transformers 5 puts one there that adds nothing.
        tokenizer.backend_tokenizer.post_processor = None
        data = prepare(config_for(path, *settings), path, tokenizer)
        tokens = [[(e.input_ids, e.labels, e.line) for e in row] for row in [*data.train, *data.eval]]
        found = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
        assert (data.digests().versioned[:12], found[:12]) == expected


def test_alpaca_is_an_instruction_with_other_names(tmp_path, tokenizer):
    rows = [{"instruction": f"a{i}", "input": "c" * (i % 2), "output": "b"} for i in range(20)]
    write_jsonl(tmp_path / "alpaca.jsonl", rows)
    write_jsonl(
        tmp_path / "instruction.jsonl",
        [{"instruction": row["instruction"], "context": row["input"], "response": row["output"]} for row in rows],
    )
    found = [prepared(tokenizer, tmp_path / f"{name}.jsonl") for name in ("alpaca", "instruction")]
    assert found[0].digests() == found[1].digests()
    assert list(found[0].train) == list(found[1].train)


def test_a_completion_follows_its_prompt_as_it_is(tmp_path, tokenizer):
    write_jsonl(tmp_path / "rows.jsonl", numbered({"prompt": "a: ", "completion": " b\n"}))
    data = prepared(tokenizer, tmp_path / "rows.jsonl")
    for row in data.train:
        for example in row:
            assert trained_text(tokenizer, example) == " b\n<|im_end|>"
            assert tokenizer.decode(example.input_ids).endswith(":  b\n<|im_end|>")
            assert tokenizer.decode(example.input_ids).startswith("a")


def test_only_the_completions_answers_are_trained_on(tmp_path, tokenizer):
    asked = [*TURNS, {"role": "user", "content": "c"}]
    write_jsonl(
        tmp_path / "rows.jsonl", numbered({"prompt": asked, "completion": [{"role": "assistant", "content": "d"}]})
    )
    for row in prepared(tokenizer, tmp_path / "rows.jsonl").train:
        for example in row:
            assert trained_text(tokenizer, example) == "d<|im_end|>"
            assert tokenizer.decode(example.input_ids).count("<|im_end|>") == 4


@pytest.mark.parametrize("family", ["llama3", "smollm2", "mistral"])
def test_a_text_has_bos_once_and_every_token_is_trained_on(tmp_path, family):
    tokenizer = of_family(family)
    write_jsonl(tmp_path / "rows.jsonl", [{"text": f"Water {number} stays."} for number in range(20)])
    data = prepared(tokenizer, tmp_path / "rows.jsonl")
    for row in data.train:
        for example in row:
            bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            assert example.input_ids[: len(bos)] == bos
            assert example.input_ids.count(tokenizer.bos_token_id) == len(bos)
            assert example.input_ids[-1] == tokenizer.eos_token_id
            assert example.labels == [IGNORE] * len(bos) + example.input_ids[len(bos) :]
    trained = sum(label != IGNORE for row in data.train for example in row for label in example.labels[1:])
    assert data.train.sums().trained == trained


def test_control_tokens_in_a_text_are_asked_about(tmp_path):
    tokenizer = of_family("llama3")
    written = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWater?<|eot_id|>"
    write_jsonl(tmp_path / "rows.jsonl", [{"text": f"{written}{number}<|eot_id|>"} for number in range(20)])
    with pytest.raises(TrntuneError, match=r"rows\.jsonl:1: holds <\|begin_of_text\|>, .*dataset\.control_tokens=read"):
        prepared(tokenizer, tmp_path / "rows.jsonl")
    data = prepared(tokenizer, tmp_path / "rows.jsonl", "dataset.control_tokens=read")
    for row in data.train:
        for example in row:
            assert example.input_ids[:2] == tokenizer.convert_tokens_to_ids(
                ["<|begin_of_text|>", "<|start_header_id|>"]
            )
            assert example.input_ids.count(tokenizer.bos_token_id) == 1
            assert example.input_ids[-2] != example.input_ids[-1] == tokenizer.eos_token_id
            assert example.labels[1:] == example.input_ids[1:]
    text = prepared(tokenizer, tmp_path / "rows.jsonl", "dataset.control_tokens=text")
    assert all(example.input_ids.count(tokenizer.eos_token_id) == 1 for row in text.train for example in row)


@pytest.mark.parametrize("answer", ["response", "output"])
def test_a_prompt_of_ones_own_is_filled_with_the_columns(tmp_path, tokenizer, answer):
    rows = [{"question": f"a{number}", "topic": "", answer: "b"} for number in range(20)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    template = "dataset.prompt_template='Q: {question} ({topic}) {{x}}\nA: '"
    data = prepared(tokenizer, tmp_path / "rows.jsonl", template, "dataset.packing=false")
    for [example] in [row for row in data.train if row]:
        text = tokenizer.decode(example.input_ids)
        number = example.line - 1
        assert text == f"Q: a{number} () {{x}}\nA: b<|im_end|>"
        assert trained_text(tokenizer, example) == "b<|im_end|>"
    chat = prepared(tokenizer, tmp_path / "rows.jsonl", template, "dataset.prompt=chat")
    text = tokenizer.decode(chat.eval[0][0].input_ids)
    assert text.startswith("<|im_start|>user\nQ: a")
    assert text.endswith("{x}\nA: <|im_end|>\n<|im_start|>assistant\nb<|im_end|>")


def test_a_field_that_no_row_has_is_told_before_anything_starts(tmp_path, tokenizer):
    write_jsonl(tmp_path / "rows.jsonl", [{"question": f"a{number}", "response": "b"} for number in range(20)])
    with pytest.raises(TrntuneError, match=r"names \{quesion\}, and the columns are question, response; did you mean"):
        prepared(tokenizer, tmp_path / "rows.jsonl", "dataset.prompt_template='Q: {quesion}'")
    with (tmp_path / "rows.jsonl").open("a") as stream:
        stream.write('{"response": "b"}\n')
    with pytest.raises(
        TrntuneError, match=r"rows\.jsonl:21: field 'question', which dataset\.prompt_template names, is"
    ):
        prepared(tokenizer, tmp_path / "rows.jsonl", "dataset.prompt_template='Q: {question}'")


def test_questions_after_training_are_asked_as_in_training(tmp_path, tokenizer):
    for record in (FITTING[4][0], FITTING[6][0], FITTING[8][0]):
        write_jsonl(tmp_path / "rows.jsonl", numbered(record))
        data = prepared(tokenizer, tmp_path / "rows.jsonl", "dataset.packing=false")
        [example] = data.eval[0]
        row = next(row for row in data.held_out if row.line == example.line)
        before = prompt_ids(row, "plain", tokenizer)
        assert example.input_ids[: len(before)] == before
        assert example.labels[: len(before) + 1] == [IGNORE] * len(before) + [example.input_ids[len(before)]]
        assert end_ids(row, "plain", tokenizer)[0] == example.input_ids[-1]
