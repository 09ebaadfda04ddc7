"""Where a run stands when its training stage is started: which attempt this is, and what the one before it left."""

from __future__ import annotations

import os
from contextlib import suppress

from launcher.config.secrets import redact
from launcher.errors import SuspendedError
from launcher.run_dir.attempts import Attempts, launch
from launcher.run_dir.layout import RunDir
from launcher.run_dir.reached import furthest_step, last_record
from launcher.run_dir.result import RunStatus


class History:
    """attempts.jsonl, as the attempt at hand writes it. Rank 0 only."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        self.attempts = Attempts(run_dir.attempts)
        self.before = last_record(run_dir.metrics)
        self.number = 0
        self.step = furthest_step(run_dir)
        """last step that was finished, by this attempt or an earlier one"""

    def begin(self) -> None:
        """Write down that this attempt begins: as the start that the launcher has written down, or as one of its own.

        Raises TrntuneError when the last ones got no further, one after the other.
        """
        handed_over = self.attempts.handed_over()
        self.number = launch(self.run_dir) if handed_over is None else handed_over
        self.attempts.start(self.number)

    def resume(self, step: int, seconds: float) -> int:
        """Go on after ``step``, at which training had taken ``seconds``: what came after is lost, and counted. Returns
        how many steps that are."""
        lost = max(self.step - step, 0)
        if lost:
            self.attempts.lose(self._before(), lost, max(self.before.get("seconds", 0.0) - seconds, 0.0))
        if step == 0 and self.run_dir.metrics.exists():
            os.truncate(self.run_dir.metrics, 0)
        self.attempts.resume(self.number, step)
        return lost

    def _before(self) -> int:
        """Number of the last attempt before this one that came to train."""
        begun = [past.number for past in self.attempts.read() if past.begun and past.number < self.number]
        return max(begun, default=self.number - 1)

    def end(self, outcome: str, reason: str | None = None) -> None:
        """Write down how this attempt ended. The furthest step counts, also when it was an earlier attempt's."""
        if self.number:
            with suppress(OSError):  # what went wrong must not be hidden by a full disk
                self.attempts.end(self.number, outcome, self.step, reason)


def ending_of(error: BaseException) -> tuple[RunStatus, str | None]:
    """Outcome and reason of an attempt that ended without a result."""
    if isinstance(error, SuspendedError):
        return RunStatus.SUSPENDED, None
    if isinstance(error, KeyboardInterrupt):
        return RunStatus.INTERRUPTED, None
    return RunStatus.FAILED, redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
