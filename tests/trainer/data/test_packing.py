"""Packed rows: full, whole, and isolated from each other."""

from __future__ import annotations

import json
import random

import pytest

from tests.trainer.models.conftest import composed
from trainer.data.collate import Collator
from trainer.data.packing import pack
from trainer.data.prepare import prepare
from trainer.data.tokenize import IGNORE, Example


def lengths(count: int) -> list[int]:
    generator = random.Random(0)
    return [generator.randint(10, 300) for _ in range(count)]


def test_packing_keeps_every_example_once_fits_and_is_nearly_full():
    all_lengths = lengths(5000)
    bins = pack(all_lengths, 1024)
    assert sorted(index for group in bins for index in group) == list(range(5000))
    assert max(sum(all_lengths[i] for i in group) for group in bins) <= 1024
    assert len(bins) <= 1.01 * sum(all_lengths) / 1024 + 1
    assert bins == pack(all_lengths, 1024)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="length 11 exceeds the capacity 10"):
        pack([3, 11], 10)


def test_no_examples_give_no_rows():
    assert pack([], 10) == []


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


def config_for(path, *arguments):
    return composed(
        "dataset=jsonl", f"dataset.path={path}", "dataset.eval_samples=7", "training.max_length=256",
        "training.global_batch_size=4", *arguments,
    )  # fmt: skip


def test_the_seed_changes_the_order_of_training_and_nothing_that_is_held_out(rows_file, tokenizer):
    first = prepare(config_for(rows_file, "seed=1"), rows_file, tokenizer)
    second = prepare(config_for(rows_file, "seed=2"), rows_file, tokenizer)
    assert first.held_out == second.held_out
    assert first.eval == second.eval
    assert first.train != second.train
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
