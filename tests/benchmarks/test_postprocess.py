"""The benchmark's machinery on a tiny model: what it measures is not looked at, only that it is all there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.postprocess import main


def test_every_case_has_its_samples_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["merge", "--size", "tiny", "--repeats", "1", "--with-peft", "--directory", str(tmp_path)]
    assert main(arguments) == 0
    [file] = tmp_path.iterdir()
    cases = json.loads(file.read_text())["cases"]
    assert list(cases) == ["cp -r", "trntune merge", "peft"]
    assert all(len(case["samples"]) == 1 and case["ratio"] > 0 for case in cases.values())
    assert cases["cp -r"]["ratio"] == 1
    assert cases["trntune merge"]["peak_anonymous_bytes"] > 1e7
    assert "trntune merge" in capsys.readouterr().out


def test_consolidating_is_measured_in_the_same_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consolidate", "--size", "tiny", "--repeats", "1", "--directory", str(tmp_path)]) == 0
    [file] = tmp_path.iterdir()
    measured = json.loads(file.read_text())
    assert list(measured["cases"]) == ["cp -r", "trntune consolidate"]
    assert measured["model"]["ranks"] == 8
    assert all(case["samples"][0]["durable_seconds"] > 0 for case in measured["cases"].values())
    assert measured["cases"]["trntune consolidate"]["peak_anonymous_bytes"] > 1e7
    assert "trntune consolidate" in capsys.readouterr().out


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--size", "9B"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
