"""Packed rows: full, whole, and isolated from each other."""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import asdict

import numpy as np
import pytest
import torch

from launcher.errors import TrntuneError
from tests.trainer.data.conftest import config_for
from tests.trainer.models.conftest import composed
from trainer.data.collate import Collator
from trainer.data.packing import pack
from trainer.data.prepare import prepare
from trainer.data.rows import InstructionRow
from trainer.data.tokenize import IGNORE, Example, prompt_ids


def lengths(count: int) -> list[int]:
    generator = random.Random(0)
    return [generator.randint(10, 300) for _ in range(count)]


def groups(of: list[int], capacity: int) -> list[list[int]]:
    """What pack returns, as lists."""
    order, ends = pack(of, capacity)
    return [part.tolist() for part in np.split(order, ends)[:-1]]


def test_packing_keeps_every_example_once_fits_and_is_nearly_full():
    all_lengths = lengths(5000)
    bins = groups(all_lengths, 1024)
    assert sorted(index for group in bins for index in group) == list(range(5000))
    assert max(sum(all_lengths[i] for i in group) for group in bins) <= 1024
    assert len(bins) <= 1.01 * math.ceil(sum(all_lengths) / 1024)
    assert bins == groups(all_lengths, 1024)


def test_the_longest_come_first_and_each_goes_where_least_room_is_left():
    assert groups([5, 5, 3, 7], 10) == [[3, 2], [0, 1]]
    assert groups([2, 6, 5, 4], 10) == [[1, 3], [2, 0]]
    assert groups([8, 7, 2], 10) == [[0, 2], [1]]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="length 11 exceeds the capacity 10"):
        pack([3, 11], 10)


def test_no_examples_give_no_rows():
    assert groups([], 10) == []


def row(*texts: str) -> list[Example]:
    """Documents whose tokens are the bytes of a text; the first token of each isn't trained on."""
    return [Example(list(text.encode()), [IGNORE, *text.encode()[1:]]) for text in texts]


def test_targets_stay_inside_their_document_and_positions_restart():
    batch = Collator(10, pad_token_id=0)([row("abc", "de"), row("fghij")])
    a, b, c, d, e, f, g, h, i, j = range(ord("a"), ord("k"))
    x = IGNORE
    assert batch["input_ids"].tolist() == [[a, b, c, d, e, 0, 0, 0, 0, 0], [f, g, h, i, j, 0, 0, 0, 0, 0]]
    assert batch["targets"].tolist() == [[b, c, x, e, x, x, x, x, x, x], [g, h, i, j, x, x, x, x, x, x]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 0, 0, 0, 0, 0]]
    assert batch["documents"].tolist() == [[0, 0, 3], [0, 3, 5], [1, 0, 5]]
    assert (batch["num_examples"], batch["num_tokens"], batch["num_trained"]) == (3, 10, 7)


def test_a_row_of_padding_holds_nothing():
    batch = Collator(6, pad_token_id=9)([[]])
    assert batch["input_ids"].tolist() == [[9] * 6]
    assert batch["documents"].shape == (0, 3)
    assert (batch["num_examples"], batch["num_tokens"], batch["num_trained"]) == (0, 0, 0)


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    records = [{"instruction": f"question {i}", "response": "x" * (i % 50 + 1)} for i in range(60)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_seed_changes_the_order_of_training_and_nothing_that_is_held_out(rows_file, tokenizer):
    first = prepare(config_for(rows_file, "seed=1"), rows_file, tokenizer)
    second = prepare(config_for(rows_file, "seed=2"), rows_file, tokenizer)
    assert list(first.held_out) == list(second.held_out)
    assert list(first.eval) == list(second.eval)
    assert list(first.train) != list(second.train)
    assert sorted(map(repr, first.train)) == sorted(map(repr, second.train))


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_is_whole_global_batches_with_every_example_once(rows_file, tokenizer, packing):
    data = prepare(config_for(rows_file, f"dataset.packing={packing}"), rows_file, tokenizer)
    examples = [example for row in data.train for example in row]
    assert len(data.train) % 4 == 0
    assert len(data.held_out) == 7
    assert len(examples) == data.report.train_examples == 53
    assert len({tuple(example.input_ids) for example in examples}) == 53
    real = sum(len(example.input_ids) for example in examples)
    assert data.report.train_tokens == real
    assert data.report.padding_fraction == pytest.approx(1 - real / (len(data.train) * 256))
    assert (max(map(len, data.train)) > 1) == packing


def test_held_out_rows_do_not_depend_on_the_order_of_the_file(rows_file, tokenizer):
    first = prepare(config_for(rows_file), rows_file, tokenizer)
    held_out = list(first.held_out)
    rows_file.write_text("".join(sorted(rows_file.read_text().splitlines(keepends=True), reverse=True)))
    second = prepare(config_for(rows_file), rows_file, tokenizer)
    assert list(first.train) == list(second.train)
    assert list(first.eval) == list(second.eval)
    assert held_out == list(second.held_out)
    assert first.digests() == second.digests()
    assert first.lines([0]) != second.lines([0])


def test_rows_that_fill_the_last_global_batch_are_empty_and_last(rows_file, tokenizer):
    data = prepare(config_for(rows_file, "dataset.packing=false"), rows_file, tokenizer)
    assert [len(row) for row in data.train] == [1] * 53 + [0] * 3
    assert len(data.eval) == 7  # evaluation needs no whole batches
    assert all(data.eval)


def test_the_report_counts_what_became_of_the_data(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    plain = [{"instruction": f"{i}", "response": "yes"} for i in range(10, 30)]
    cut = [{"instruction": f"cut {i}", "response": "x" * 500, "topic": "z" * 10} for i in range(3)]
    no_room = [{"instruction": f"{i} " + "x" * 500, "response": "y"} for i in range(12)]
    rows = [*plain, *cut, *no_room]
    texts = list(map(json.dumps, rows))
    path.write_text("\n".join(["broken", *texts, "{}"]))
    config = config_for(path, "dataset.on_bad_row=skip", "dataset.packing=false")
    data = prepare(config, path, tokenizer)
    report = asdict(data.report)
    assert len(data.held_out) > report["eval_examples"]  # dropped ones are on both sides
    assert 35 - len(data.held_out) > report["train_examples"]
    kept = [example for side in (data.train, data.eval) for row in side for example in row]
    tokens = sum(len(example.input_ids) for row in data.train for example in row)
    assert len(kept) == 23
    assert sum(len(example.input_ids) == 256 for example in kept) == 3
    assert report == {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows_read": 35,
        "rows_skipped": 2,
        "train_examples": sum(map(len, data.train)),
        "eval_examples": sum(map(len, data.eval)),
        "truncated": 3,
        "dropped": 12,
        "train_rows": len(data.train),
        "train_tokens": tokens,
        "padding_fraction": pytest.approx(1 - tokens / (len(data.train) * 256)),
        "unused": {"topic": pytest.approx(30 / sum(map(len, (v for row in rows for v in row.values()))))},
        "turns_cut": 0,
        "left_out": 0,
        "eval_in_train": 0,
        "format": "instruction",
        "columns": ["instruction", "response"],
        "found": "format instruction, found from the columns instruction, response",
        "template_sha256": None,
        "notes": [],
        "eval_line": None,
        "files": [],
    }
    assert prepare(config, path, tokenizer).report == data.report  # from the cache


def test_columns_are_of_the_users_file_and_not_of_what_was_downloaded(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"{i}", "response": "y"}) + "\n" for i in range(20)))
    mapped = ("dataset.columns.response=reply", "dataset.eval_samples=7")
    with pytest.raises(TrntuneError, match="no field 'reply'"):
        prepare(config_for(path, *mapped), path, tokenizer)
    downloaded = prepare(composed("dataset=python_docs", *mapped), path, tokenizer)
    assert downloaded.report.rows_read == 20


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_targets_of_real_rows_are_the_answers_of_their_own_document(rows_file, tokenizer, loss_on):
    data = prepare(config_for(rows_file, f"dataset.loss_on={loss_on}"), rows_file, tokenizer)
    rows = [*data.train, []]
    batch = Collator(256, tokenizer.pad_token_id)(rows)
    for name in ("input_ids", "targets", "position_ids"):
        assert batch[name].shape == (len(rows), 256)
        assert batch[name].dtype == torch.int64
    assert len(batch["documents"]) == batch["num_examples"] == 53
    outside = torch.ones(len(rows), 256, dtype=torch.bool)
    trained = 0
    for (number, start, end), example in zip(
        batch["documents"].tolist(), [example for row in rows for example in row], strict=True
    ):
        outside[number, start:end] = False
        text = tokenizer.decode(batch["input_ids"][number, start:end])
        instruction, answer = text.removeprefix("### Instruction\n").split("\n\n### Answer\n")
        before = len(prompt_ids(InstructionRow(instruction, "", "x"), "plain", tokenizer))
        targets = batch["targets"][number, start:end].tolist()
        masked = 0 if loss_on == "all" else before - 1
        assert targets == [IGNORE] * masked + example.input_ids[masked + 1 :] + [IGNORE]
        assert tokenizer.decode(targets[before - 1 : -1]) == answer
        assert answer.endswith("<|im_end|>")
        assert "### Instruction" not in answer
        assert batch["position_ids"][number, start:end].tolist() == list(range(end - start))
        trained += end - start - 1 - masked
    assert batch["num_trained"] == trained
    assert batch["num_tokens"] == data.report.train_tokens == (~outside).sum()
    assert set(batch["input_ids"][outside].tolist()) == {tokenizer.pad_token_id}
    assert set(batch["targets"][outside].tolist()) == {IGNORE}
