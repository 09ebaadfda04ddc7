"""The default data: real, many, and the same for one interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

from launcher.paths import ROOT
from trainer.data.python_docs import build_rows, summary

BUILD = """
import hashlib, sys
from trainer.data.python_docs import build_rows
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
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().endswith("False\n")


def test_there_are_thousands_of_rows_that_make_sense():
    rows = build_rows()
    assert 3000 <= len(rows) <= 6000
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
