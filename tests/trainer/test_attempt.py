"""What counts as progress when a run is started again."""

from __future__ import annotations

import json

import pytest

from launcher.errors import TrntuneError
from launcher.run_dir.layout import RunDir
from trainer.attempt import History


def killed_after(run_dir: RunDir, *, line: int | None, checkpoint: int | None) -> None:
    """One more attempt that was killed: its last line in metrics.jsonl, and its newest checkpoint."""
    History(run_dir).begin()
    if line is not None:
        record = {"event": "train", "step": line, "seconds": 1.0}
        run_dir.metrics.write_text(json.dumps(record) + "\n")
    if checkpoint is not None:
        (run_dir.checkpoints / f"step-{checkpoint}").mkdir(parents=True)


@pytest.mark.parametrize("line", [None, 100], ids=["no line yet", "one line for many steps"])
def test_checkpoints_between_two_lines_are_progress(tmp_path, line):
    """tracking.log_every=100, save_every=30: killed again and again, but each time further on."""
    run_dir = RunDir(tmp_path)
    for step in (120, 150, 180, 210):
        killed_after(run_dir, line=line, checkpoint=step)
    again = History(run_dir)
    again.begin()
    assert again.resume(210, 0.0) == 0
    assert [attempt.step for attempt in again.attempts.read()][:-1] == [120, 150, 180, 210]


def test_attempts_without_a_new_checkpoint_or_line_are_none(tmp_path):
    run_dir = RunDir(tmp_path)
    for step in (120, None, None):
        killed_after(run_dir, line=100, checkpoint=step)
    with pytest.raises(TrntuneError, match="3 attempts in a row got no further than step 120"):
        History(run_dir).begin()


def test_steps_after_a_checkpoint_that_broke_are_lost_also_without_a_line(tmp_path):
    run_dir = RunDir(tmp_path)
    killed_after(run_dir, line=None, checkpoint=60)
    again = History(run_dir)
    again.begin()
    assert again.resume(30, 5.0) == 30
    assert again.attempts.read()[0].lost_seconds == 0
