"""What a run trains on of a file of conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import TrntuneError
from tests.trainer.data.chats import messages
from tests.trainer.data.conftest import config_for
from tests.trainer.data.families import tokenizer as of_family
from trainer.data.prepare import data_notes, prepare
from trainer.data.tokenize import IGNORE


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
    assert (again.digests(), list(again.train), again.report) == (data.digests(), list(data.train), data.report)
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
