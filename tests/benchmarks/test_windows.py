"""The benchmark of windows on a small model: that all ways are the same work, not how long they take."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import windows
from launcher.errors import TrntuneError


def test_every_way_is_timed_on_the_same_documents(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(windows, "LOADS", (windows.Load("350 tokens", 350, 50, 768, 1),))
    threads = torch.get_num_threads()
    assert windows.main(["--layers", "1", "--repeats", "1", "--directory", str(tmp_path)]) == 0
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "windows.json").read_text())["ratios"]["350 tokens"]
    assert set(found) == {windows.OURS, windows.FULL, windows.LONGEST, windows.ROW}
    assert found[windows.OURS] == [1.0]
    assert all(len(each) == 1 and each[0] > 0 for each in found.values())
    assert "times as long" in capsys.readouterr().out


def test_rows_are_nearly_full_of_documents_around_their_mean():
    short, long = windows.LOADS
    assert all(60 < length < 400 for length in short.lengths())
    assert 0.95 < sum(short.lengths()) / (short.row * short.rows) <= 1
    assert long.lengths() == [3000]


def test_other_losses_are_no_measurement(monkeypatch):
    monkeypatch.setattr(windows, "our_way", lambda config, examples, length: lambda: 1.0)
    monkeypatch.setattr(windows, "plain_way", lambda config, examples, length, batch: lambda: 1.1)
    with pytest.raises(TrntuneError, match=r"the loss is 1\.0000 packed, and 1\.1000 transformers"):
        windows.measured(windows.mistral(1), windows.LOADS[0], 1)


@pytest.mark.parametrize("wrong", [["--layers", "0"], ["--repeats", "0"], ["--rows", "-1"]])
def test_usage(wrong, tmp_path, capsys):
    assert windows.main([*wrong, "--directory", str(tmp_path)]) == 2
    assert "at least 1" in capsys.readouterr().err
