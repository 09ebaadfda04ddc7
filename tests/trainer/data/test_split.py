"""The held-out split: fixed by the rows themselves, and the same whether a set is looked at whole or piece by piece."""

from __future__ import annotations

import random

import numpy as np
import pytest

from launcher.config.schema import DatasetConfig
from launcher.errors import TrntuneError
from tests.trainer.data.conftest import config_for
from trainer.data.held_out import held_out_rows
from trainer.data.json_lines import read_jsonl
from trainer.data.rows import InstructionRow
from trainer.data.source import Source
from trainer.data.split import WINDOW, keys, split

Rows = list[InstructionRow]


def sides(rows: Rows, eval_samples: int, seed: int, max_samples: int | None, window: int = WINDOW) -> tuple[Rows, Rows]:
    """Training and held-out rows."""
    found = np.array([keys(row, seed) for row in rows], dtype=[("question", "<u8"), ("answer", "<u8")])
    held_out, windows = split(found, eval_samples, max_samples, window)
    return [rows[i] for places in windows for i in places], [rows[i] for i in held_out]


def rows(count: int) -> list[InstructionRow]:
    return [InstructionRow(f"question {i // 3}", "", f"answer {i}") for i in range(count)]


def test_the_split_does_not_depend_on_the_order_of_the_file():
    shuffled = rows(100)
    random.Random(1).shuffle(shuffled)
    assert sides(rows(100), 20, 0, None) == sides(shuffled, 20, 0, None)
    assert sides(rows(100), 20, 0, None) != sides(rows(100), 20, 1, None)
    assert len(sides(rows(100), 20, 0, 50)[0]) + len(sides(rows(100), 20, 0, 50)[1]) == 50


@pytest.mark.parametrize("held", range(1, 12))
def test_a_question_that_is_asked_twice_falls_on_one_side(held):
    train, held_out = sides(rows(30), held, 0, None)
    assert len(train) + len(held_out) == 30
    assert len(held_out) >= held
    assert not {row.instruction for row in train} & {row.instruction for row in held_out}


def test_too_few_rows_to_hold_some_out():
    with pytest.raises(TrntuneError, match=r"dataset\.eval_samples=10: only 9 rows"):
        sides(rows(9), 10, 0, None)


def test_the_same_instruction_with_another_context_is_another_question():
    same = [InstructionRow("Summarize.", f"text {i}", "x") for i in range(20)]
    train, held_out = sides(same, 5, 0, None)
    assert (len(train), len(held_out)) == (15, 5)


def test_rows_that_all_ask_the_same_cannot_be_sides():
    with pytest.raises(TrntuneError, match=r"dataset\.eval_samples=1: only 4 rows"):
        sides([InstructionRow("a", "", f"{i}") for i in range(4)], 1, 0, None)


def test_fewer_rows_hold_out_the_same_questions():
    assert sides(rows(99), 21, 0, 60)[1] == sides(rows(99), 21, 0, None)[1]


@pytest.mark.parametrize("window", [1, 10, 64, 99])
@pytest.mark.parametrize(("held", "most"), [(1, None), (20, None), (20, 61), (60, 70)])
def test_a_set_that_is_looked_at_piece_by_piece_is_split_as_one_that_is_not(window, held, most):
    whole = sides(rows(200), held, 3, most)
    assert sides(rows(200), held, 3, most, window) == whole
    assert sum(map(len, whole)) == (most or 200)


def test_pieces_hold_about_as_many_rows_as_they_may():
    found = np.array([keys(row, 0) for row in rows(9000)], dtype=[("question", "<u8"), ("answer", "<u8")])
    pieces = list(split(found, 10, None, window=1000)[1])
    assert len(pieces) == 9
    assert max(map(len, pieces)) < 1100


def test_the_held_out_rows_are_found_without_a_tokenizer(jsonl):
    records = [{"q": f"question {i // 3}", "r": f"answer {i}"} for i in range(100)]
    path = jsonl(b"\xef\xbb\xbf" + str(records[0]).replace("'", '"').encode(), *records[1:50], "broken", *records[50:])
    columns = ("dataset.columns.instruction=q", "dataset.columns.context=null", "dataset.columns.response=r")
    settings = config_for(path, *columns, "dataset.on_bad_row=skip", "dataset.split_seed=5")
    source = Source.of(settings, path)
    expected = sides(read_jsonl(path, source.columns, "skip")[0], 20, 5, None)[1]
    assert held_out_rows(source, DatasetConfig(eval_samples=20)) == expected
    found = held_out_rows(source, DatasetConfig(eval_samples=20), 7)
    assert [(row, row.line) for row in found] == [(row, row.line) for row in expected[:7]]
