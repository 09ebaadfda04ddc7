"""Columns that lie within others are read by their paths, in every kind of file."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.errors import TrntuneError
from tests.trainer.data.files import (
    KINDS,
    ROWS,
    prepared,
    write_csv,
    write_jsonl,
    write_parquet,
)

NESTED = ("dataset.columns.instruction=data.q", "dataset.columns.response=data.answers.best")


def nested(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"id": str(number), "data": {"q": row["instruction"], "answers": {"best": row["response"]}, "source": "web"}}
        for number, row in enumerate(rows)
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "rows.arrow", "stream.arrow"])
def test_a_nested_column_is_read_by_its_path_in_every_kind_of_file(tmp_path, tokenizer, expected, name):
    KINDS[name](tmp_path / name, nested(ROWS))
    data = prepared(tokenizer, tmp_path / name, *NESTED)
    assert data.digests() == expected.digests()
    assert [row.response for row in data.held_out] == [row.response for row in expected.held_out]
    # What isn't read of the field around them is told of, and nothing of what is.
    web, numbers = sum(len("web") for _ in ROWS), sum(len(row["id"]) for row in nested(ROWS))
    text = sum(len(row["instruction"]) + len(row["response"]) for row in ROWS) + web + numbers
    assert data.report.unused == {"data": pytest.approx(web / text), "id": pytest.approx(numbers / text)}
    own = "dataset.prompt_template='Q: {name} A: '"
    flat = prepared(tokenizer, tmp_path / "expected.jsonl", own.replace("name", "instruction"))
    assert prepared(tokenizer, tmp_path / name, NESTED[1], own.replace("name", "data.q")).digests() == flat.digests()


def test_a_column_that_is_called_so_goes_before_a_path(tmp_path, tokenizer):
    rows = [{"data.q": f"right {i}", "data": {"q": "wrong", "r": {"a.b": "an answer"}}} for i in range(20)]
    write_parquet(tmp_path / "rows.parquet", rows)
    settings = ("dataset.columns.instruction=data.q", "dataset.columns.response=data.r.a.b")
    data = prepared(tokenizer, tmp_path / "rows.parquet", *settings)
    assert {row.instruction[:5] for row in data.held_out} == {"right"}
    assert {row.response for row in data.held_out} == {"an answer"}
    own = prepared(tokenizer, tmp_path / "rows.parquet", settings[1], "dataset.prompt_template='{data.q}?'")
    assert {row.instruction[:5] for row in own.held_out} == {"right"}
    write_csv(tmp_path / "rows.csv", [{"data.q": f"right {i}", "response": "b"} for i in range(20)])
    assert len(prepared(tokenizer, tmp_path / "rows.csv", settings[0]).held_out) == 7


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"data": {"question": "a"}}, r"no field 'data\.q' \(in 'data' there are: 'question'"),
        ({"data": "a"}, r"no field 'data\.q' \('data' is no object, but str\); another name is"),
        ({"data": {"q": 3}}, r"field 'data\.q' must be text, not int"),
        ({"id": "a"}, r"no field 'data\.q' \(there are: 'id', 'response'"),
    ],
)
def test_what_is_wrong_with_a_path_is_told(tmp_path, tokenizer, row, says):
    write_jsonl(tmp_path / "rows.jsonl", [*[{"data": {"q": "a"}, "response": "b"}] * 5, {**row, "response": "b"}])
    with pytest.raises(TrntuneError, match=rf"rows\.jsonl:6: {says}"):
        prepared(tokenizer, tmp_path / "rows.jsonl", "dataset.columns.instruction=data.q")
    if "another" not in says and "must" not in says:
        with pytest.raises(TrntuneError, match=r"rows\.jsonl:6: field 'data\.q', which .* is missing \(.*there are: "):
            prepared(tokenizer, tmp_path / "rows.jsonl", "dataset.prompt_template='{data.q}'")
