"""The default data: real, many, and the same for one interpreter."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from launcher.errors import TrntuneError
from launcher.paths import ROOT
from tests.limits import PATIENCE
from trainer.fetch.python_docs import build_rows, summary, write_python_docs

BUILD = """
import hashlib, sys
from trainer.fetch.python_docs import build_rows
print(hashlib.sha256(repr(build_rows()).encode()).hexdigest(), "torch" in sys.modules)
"""


def test_two_processes_build_the_same_rows_without_torch():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", BUILD],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().endswith("False\n")


def test_neither_the_locale_nor_what_this_process_did_to_the_standard_library_is_in_the_file(tmp_path, monkeypatch):
    def warning_twice(self):
        """Log the same warning two times in a row."""

    write_python_docs(tmp_path / "before.jsonl")
    monkeypatch.setattr(logging.Logger, "warning_twice", warning_twice, raising=False)  # as transformers does
    assert any(row.instruction == "What does logging.Logger.warning_twice do?" for row in build_rows())
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    write_python_docs(tmp_path / "after.jsonl")
    assert (tmp_path / "before.jsonl").read_bytes() == (tmp_path / "after.jsonl").read_bytes()


def test_a_file_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(TrntuneError, match=r"rows\.jsonl: the rows of dataset=python_docs can't be built: .*taken"):
        write_python_docs(tmp_path / "taken" / "rows.jsonl")


def test_no_row_names_where_this_interpreter_is_installed():
    places = (sys.prefix, sys.base_prefix, sys.executable)
    assert not [row for row in build_rows() for place in places if f"'{place}" in row.context]


def test_there_are_thousands_of_rows_that_make_sense():
    rows = build_rows()
    assert 3000 <= len(rows) <= 5000
    [join] = [row for row in rows if row.instruction == "What does os.path.join do?"]
    assert join.context == "os.path.join(a, *p)"
    assert join.response.startswith("Join two or more pathname components")
    assert len({row.response.lower() for row in rows}) == len(rows)
    assert not [row for row in rows if " at 0x" in row.context + row.response]
    assert max(len(row.response.split()) for row in rows) <= 60
    assert min(len(row.response.split()) for row in rows) >= 4


def test_a_summary_is_the_first_paragraph_without_the_signature_line():
    assert summary("max(iterable) -> value\n\nWith a single argument,\nreturn its biggest item.\n\nMore.") == (
        "With a single argument, return its biggest item."
    )
    assert summary("Too short.") == ""
    long = " ".join(["One sentence of five words."] * 20)
    assert summary(long).endswith("words.")
    assert len(summary(long).split()) == 60
