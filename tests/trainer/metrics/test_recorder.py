"""metrics.jsonl of a run that goes on."""

from __future__ import annotations

import pytest

from trainer.metrics.progress import Progress
from trainer.metrics.recorder import Recorder
from trainer.signals import StopSignal


def recorder(metrics) -> Recorder:
    return Recorder(metrics, None, Progress(4), 1, StopSignal(), lambda rows: rows)


@pytest.mark.parametrize("left", ["gone", "cut off"])
def test_lines_that_are_gone_are_told_of(tmp_path, capsys, left):
    metrics = tmp_path / "metrics.jsonl"
    first = recorder(metrics)
    first.on_evaluation(0, 3.5)
    tensors, document = first.state()
    recorder(metrics).restore(tensors, document)
    assert capsys.readouterr().err.count("warning") == 0
    if left == "gone":
        metrics.unlink()
    else:
        metrics.write_bytes(metrics.read_bytes()[:10])
    recorder(metrics).restore(tensors, document)
    [warning] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert "metrics.jsonl has" in warning
    assert "lines of earlier steps are gone" in warning


def test_lines_after_the_checkpoint_are_taken_off(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    first = recorder(metrics)
    first.on_evaluation(0, 3.5)
    kept = metrics.read_text()
    state = first.state()
    first.on_evaluation(2, 3.0)
    again = recorder(metrics)
    again.restore(*state)
    assert metrics.read_text() == kept
    assert again.held_out == {0: 3.5}
