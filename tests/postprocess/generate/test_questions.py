"""Questions from a file: of every kind and format that a run can be trained on, with errors in this command's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import ColumnsConfig
from launcher.errors import TrntuneError, UsageError
from postprocess.generate.__main__ import _columns
from postprocess.generate.questions import from_file

ALPACA = {"instruction": "What?", "input": "A text.", "output": "That."}
PASSAGE = {"instruction": "What?", "passage": "A text.", "response": "That."}
OWN = {"data": {"q": "What?"}, "answer": "That."}
TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRNTUNE_CACHE", str(tmp_path / "cache"))


def written(path: Path, row: dict[str, Any]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps([row] * 3))
    elif path.suffix == ".csv":
        path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    return path


@pytest.mark.parametrize(
    ("name", "row", "columns", "context"),
    [
        ("a.jsonl", ALPACA, [], "A text."),
        ("a.csv", ALPACA, [], "A text."),
        ("a.jsonl", PASSAGE, ["context=passage"], "A text."),
        ("a.json", PASSAGE, ["context=null"], ""),
        ("a.json", OWN, ["instruction=data.q", "response=answer"], ""),
        ("a.jsonl", {"messages": TURNS}, [], ""),
        ("a.jsonl", {"prompt": "What?", "completion": "That.", "document": "x"}, [], ""),
    ],
)
def test_what_a_run_can_be_trained_on_can_be_asked(tmp_path, name, row, columns, context):
    [question, *_] = from_file(written(tmp_path / name, row), 2, _columns(columns))
    found = (question.row.instruction, question.row.context, question.reference)
    assert found == ("What?", context, "That.")


@pytest.mark.parametrize(
    ("row", "columns", "says"),
    [
        (PASSAGE, [], "take it with --column context=passage, or leave it out with --column context=null"),
        (OWN, [], r"a\.jsonl:1: no field 'instruction' .*; another name is --column instruction=NAME; fix the row$"),
        (OWN, ["instruction=data.x"], r"no field 'data\.x' \(in 'data' there are: 'q'"),
        ({"text": "a"}, [], "texts ask nothing"),
        ({"prompt": TURNS[:1], "completion": "That."}, [], "'prompt' must be text, not list; fix the row$"),
    ],
)
def test_errors_name_what_this_command_has(tmp_path, row, columns, says):
    with pytest.raises(TrntuneError, match=says) as caught:
        from_file(written(tmp_path / "a.jsonl", row), 2, _columns(columns))
    assert "dataset." not in str(caught.value)


def test_a_column_is_one_of_the_formats(tmp_path):
    assert _columns(["prompt=a=b"]) == ColumnsConfig(prompt="a=b")
    for wrong in ("promt=a", "prompt", "prompt="):
        with pytest.raises(UsageError, match=rf"--column {wrong}: write NAME=FIELD, with a NAME among instruction, "):
            _columns([wrong])
    with pytest.raises(TrntuneError, match=r"nowhere\.jsonl: does not exist; set --file to what does"):
        from_file(tmp_path / "nowhere.jsonl", None)
