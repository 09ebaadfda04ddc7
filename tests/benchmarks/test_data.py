"""The benchmark of data: its rows, its tables, its arguments; not how long anything takes."""

from __future__ import annotations

import json

import pytest

from benchmarks.data import report as data_report
from benchmarks.data import rows
from benchmarks.data.__main__ import main
from benchmarks.data.report import NOT_THE_SAME, report


def test_rows_are_the_same_every_time_and_conversations_have_one_to_four_answers(tmp_path):
    for write in (rows.write_rows, rows.write_chats):
        write(tmp_path / "a.jsonl", 50, 12)
        write(tmp_path / "b.jsonl", 50, 12)
        assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    answers = [len(json.loads(line)["messages"]) / 2 for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert set(answers) == {1, 2, 3, 4}


def sample(seconds: float, rss: int) -> dict[str, float | None]:
    keys = [key for _, key, _ in data_report._LINES]
    return {**dict.fromkeys(keys, 1.0), "seconds": seconds, "cpu_seconds": 2 * seconds, "peak_rss_bytes": rss}


def test_the_tables_have_medians_the_largest_memory_and_what_is_not_the_same_work():
    ours = [sample(1.0, 3 * 10**8), sample(3.0, 10**8), sample(2.0, 10**8)]
    ours[0]["streaming_read_tokens_per_second"] = None
    peer = {"seconds": 9.0, "cpu_seconds": 8.0, "peak_rss_bytes": 7 * 10**8}
    small = {"rows": 10_000, "samples": {"trntune": ours, "TRL, num_proc=1": [peer]}}
    large = {"rows": 1_000_000, "samples": {"trntune": [{**ours[0], "share": 0.5}]}}
    lines = report([small, large], 1024).splitlines()
    assert "| first time | 2.0 s | 1.0 s |" in lines
    assert "| share of its speed | 100% | 50% |" in lines
    assert "| peak RSS | 0.30 GB | 0.30 GB |" in lines
    assert "| reading with `dataset.streaming` | 1 |  |" in lines
    assert "| TRL, num_proc=1 | 9.0 s, 8.0 s, 0.70 GB |  |" in lines
    assert [line.removeprefix("- ") for line in lines if line.startswith("- ")] == list(NOT_THE_SAME)
    assert "3, 1 rounds" in lines[0]
    alone = report([large], 1024)
    assert "TRL" not in alone


@pytest.mark.parametrize("wrong", [["--rows", "many"], ["--trl-at", "0"], ["--repeats", "0"], ["--words", "2"]])
def test_usage(wrong, tmp_path, capsys):
    assert main([*wrong, "--directory", str(tmp_path)]) == 2
    assert wrong[0] in capsys.readouterr().err
