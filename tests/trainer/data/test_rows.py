"""Reading rows: what is broken is named, and the split never leaks."""

from __future__ import annotations

import pytest

from launcher.config.schema import ColumnsConfig
from launcher.errors import TrntuneError
from trainer.data.json_lines import JsonLines, read_jsonl
from trainer.data.rows import InstructionRow

GOOD = {"instruction": "What?", "context": "", "response": "That."}

BROKEN = [
    ('{"instruction": ', "not JSON"),
    ("[1, 2]", "a JSON object is wanted, not list"),
    ({"instruction": "a", "answer": "b"}, "no field 'response'"),
    ({"Instruction": "a", "response": "b"}, "nearest is 'Instruction'"),
    ({"Instruction": "a", "response": "b"}, "dataset.columns.instruction=NAME"),
    ({"instruction": "a", "response": " \n"}, "field 'response' is empty"),
    ({"instruction": "", "response": "b"}, "field 'instruction' is empty"),
    ({"instruction": 3, "response": "b"}, "field 'instruction' must be text, not int"),
    ({"instruction": "a", "response": None}, "field 'response' must be text, not NoneType"),
    ({"instruction": "a", "context": ["x"], "response": "b"}, "field 'context' must be text, not list"),
    (b'{"instruction": "\xff\xfe", "response": "b"}', "not UTF-8 (byte 18 of the line)"),
    ('{"instruction": "\\ud800", "response": "b"}', "lone surrogate"),
    ({"instruction": "a", "response": "b \udfff"}, "field 'response' holds a lone surrogate"),
    ({"instruction": "a", "context": "\udc00", "response": "b"}, "field 'context' holds a lone surrogate"),
    ({}, "no field 'instruction' (there are: none)"),
    ("null", "a JSON object is wanted, not NoneType"),
    ("[" * 200_000, "not JSON"),
    ('{"instruction": "a", "response": "b", "id": ' + "1" * 5000 + "}", "not JSON (Exceeds the limit"),
]


@pytest.mark.parametrize(("line", "says"), BROKEN, ids=[says for _, says in BROKEN])
def test_a_broken_row_stops_the_run_with_file_and_line_or_is_counted(jsonl, line, says):
    path = jsonl(GOOD, "", line, GOOD)
    with pytest.raises(TrntuneError) as caught:
        read_jsonl(path, ColumnsConfig(), "stop")
    assert str(caught.value).startswith(f"{path}:3: ")
    assert says in str(caught.value)
    assert "dataset.on_bad_row=skip" in str(caught.value)
    rows, skipped = read_jsonl(path, ColumnsConfig(), "skip")
    assert (len(rows), skipped) == (2, 1)


def test_context_may_be_missing_null_or_empty(jsonl):
    path = jsonl(*({"instruction": "a", "response": "b", **more} for more in ({}, {"context": None}, {"context": ""})))
    assert read_jsonl(path, ColumnsConfig(), "stop")[0] == [InstructionRow("a", "", "b")] * 3


def test_a_byte_order_mark_and_windows_line_ends_are_read(jsonl):
    path = jsonl(b'\xef\xbb\xbf{"instruction": "a", "response": "b"}\r', b'{"instruction": "c", "response": "d"}\r')
    assert [row.instruction for row in read_jsonl(path, ColumnsConfig(), "stop")[0]] == ["a", "c"]


def test_blank_lines_are_not_rows_but_count_as_lines(jsonl):
    path = jsonl(b"\xef\xbb\xbf", "", GOOD, " \t", "x")
    assert read_jsonl(path, ColumnsConfig(), "skip") == ([InstructionRow("What?", "", "That.")], 1)
    with pytest.raises(TrntuneError, match=r"rows\.jsonl:5: not JSON"):
        read_jsonl(path, ColumnsConfig(), "stop")


def test_text_is_kept_as_it_is(jsonl):
    row = {"instruction": "  é \U0001f600", "context": "\tx\n", "response": " y \n"}
    assert read_jsonl(jsonl(row), ColumnsConfig(), "stop")[0] == [InstructionRow(**row)]


def test_columns_are_mapped(jsonl):
    path = jsonl({"question": "q", "passage": "p", "reply": "r"})
    columns = ColumnsConfig(instruction="question", context="passage", response="reply")
    assert read_jsonl(path, columns, "stop")[0] == [InstructionRow("q", "p", "r")]
    columns.context = None
    assert read_jsonl(path, columns, "stop")[0] == [InstructionRow("q", "", "r")]


def test_a_context_column_that_no_row_has_is_a_misspelling(jsonl):
    with pytest.raises(TrntuneError, match=r"dataset\.columns\.context=pasage: no row"):
        read_jsonl(jsonl(GOOD), ColumnsConfig(context="pasage"), "stop")
    some = jsonl({**GOOD, "passage": "p"}, GOOD)
    assert [row.context for row in read_jsonl(some, ColumnsConfig(context="passage"), "stop")[0]] == ["p", ""]


ALPACA = {"instruction": "What?", "input": "x" * 30, "output": "y" * 10, "id": 7, "tags": ["abc", {"d": "ef"}]}


def read(path, **columns):
    lines = JsonLines(path, ColumnsConfig(**columns), "stop")
    return [row for _, row in lines], lines.unused


def test_what_looks_like_a_context_is_named_or_set_to_null_before_it_is_left_out(jsonl):
    path = jsonl(ALPACA, {**ALPACA, "input": ""})
    with pytest.raises(TrntuneError) as caught:
        read(path, response="output")
    assert str(caught.value) == (
        f"{path}: field 'input' looks like a context and would be left out, 42.9% of the text; take it with "
        "dataset.columns.context=input, or leave it out with dataset.columns.context=null"
    )
    rows, unused = read(path, response="output", context="input")
    assert [row.context for row in rows] == ["x" * 30, ""]
    assert unused == {"tags": pytest.approx(10 / 70)}
    rows, unused = read(path, response="output", context=None)
    assert [row.context for row in rows] == ["", ""]
    assert unused == {"input": pytest.approx(30 / 70), "tags": pytest.approx(10 / 70)}
    assert list(unused) == ["input", "tags"]


@pytest.mark.parametrize("name", ["Context", "passage_text", "source document", "INPUT", "input-1"])
def test_a_context_has_many_names(name, jsonl):
    path = jsonl({**GOOD, name: "p"}, GOOD)
    with pytest.raises(TrntuneError, match=f"field '{name}' looks like a context"):
        read(path)
    assert read(path, context=name)[0][0].context == "p"


def test_other_fields_and_empty_ones_stop_nothing(jsonl):
    row = {**GOOD, "context": "c", "passage": "p", "category": "d"}
    assert read(jsonl(row))[1] == {"passage": pytest.approx(1 / 13), "category": pytest.approx(1 / 13)}
    rest = {"instruction": "What?", "response": "That.", "input": "", "inputs_ids": 3, "text": "all", "output": None}
    assert read(jsonl(rest))[1] == {"text": pytest.approx(3 / 13)}


def test_a_misspelt_context_is_told_what_there_is(jsonl):
    path = jsonl(ALPACA)
    with pytest.raises(TrntuneError) as caught:
        read(path, response="output", context="inptu")
    assert str(caught.value) == (
        f"dataset.columns.context=inptu: no row of {path} has this field (there are: 'instruction', 'input', 'output', "
        "'id', 'tags', nearest is 'input'); use null when there is no context"
    )


def test_no_usable_row_or_no_file_is_an_error(jsonl, tmp_path):
    with pytest.raises(TrntuneError, match=r"no usable row \(2 broken\); line 1: not JSON"):
        read_jsonl(jsonl("x", "y"), ColumnsConfig(), "skip")
    with pytest.raises(TrntuneError, match=r"no usable row \(0 broken\)$"):
        read_jsonl(jsonl(""), ColumnsConfig(), "stop")
    with pytest.raises(TrntuneError, match=r"nothing\.jsonl: can't be read: No such file"):
        read_jsonl(tmp_path / "nothing.jsonl", ColumnsConfig(), "stop")
