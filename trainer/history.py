"""Where a run stands when its training stage is started: which attempt this is, and what the one before it left."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.attempts import Attempts, verdict
from launcher.errors import TrntuneError
from launcher.paths import shown
from launcher.rundir import RunDir
from trainer.checkpoints.store import Store


def last_record(metrics: Path) -> dict[str, Any]:
    """The last whole `event=train` line of metrics.jsonl, or an empty one."""
    if not metrics.exists():
        return {}
    for line in reversed(metrics.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            record = json.loads(line)
        except ValueError:  # a crash cut it off
            continue
        if isinstance(record, dict) and record.get("event") == "train":
            return record
    return {}


class History:
    """attempts.jsonl, as the attempt at hand writes it. Rank 0 only."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        self.attempts = Attempts(run_dir.attempts)
        self.before = last_record(run_dir.metrics)
        self.number = 0
        recorded = int(self.before.get("step", 0))
        # A line may stand for many steps (tracking.log_every): checkpoints between two lines are progress too.
        self.step = max([recorded, *Store(run_dir.checkpoints).steps()])
        """last step that was finished, by this attempt or an earlier one"""

    def begin(self) -> None:
        """Write down how the last attempt ended if it could not, and that this one begins.

        Raises TrntuneError when the last ones got no further, one after the other.
        """
        past = self.attempts.read()
        if past and past[-1].outcome is None:
            self.attempts.end(past[-1].number, "died", self.step)
        if reason := verdict(self.attempts.read(), Path(shown(self.run_dir.attempts))):
            raise TrntuneError(f"{shown(self.run_dir.path)}: {reason}")
        self.number = self.attempts.start()

    def resume(self, step: int, seconds: float) -> int:
        """Go on after ``step``, at which training had taken ``seconds``: what came after is lost, and counted. Returns
        how many steps that are."""
        lost = max(self.step - step, 0)
        if lost:
            self.attempts.lose(self.number - 1, lost, max(self.before.get("seconds", 0.0) - seconds, 0.0))
        if step == 0 and self.run_dir.metrics.exists():
            os.truncate(self.run_dir.metrics, 0)
        self.attempts.resume(self.number, step)
        return lost

    def end(self, outcome: str, reason: str | None = None) -> None:
        """Write down how this attempt ended. The furthest step counts, also when it was an earlier attempt's."""
        if self.number:
            with suppress(OSError):  # what went wrong must not be hidden by a full disk
                self.attempts.end(self.number, outcome, self.step, reason)
