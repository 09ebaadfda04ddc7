"""The chain of a run's stages: how one of them ended, and what the run exits with for it. Starts nothing."""

from __future__ import annotations

import signal

from launcher.errors import FAILED, INTERRUPTED, SUSPENDED
from launcher.run_dir.attempts import Attempts
from launcher.run_dir.layout import RunDir
from launcher.run_dir.result import RunStatus


def exit_code(code: int, asked: int | None, run_dir: RunDir, stage: str) -> int:
    """What the run exits with when its stage's process has ended with ``code``, negative for a signal. ``asked``: what
    whoever asked to stop wants as an exit code; None: nobody has."""
    outcome = outcome_of(run_dir, stage)
    if code != 0:
        return failure_code(code, asked, outcome)
    if outcome == RunStatus.SUSPENDED:
        return SUSPENDED
    return INTERRUPTED if was_interrupted(run_dir, stage) else 0


def failure_code(code: int, asked: int | None, outcome: str | None) -> int:
    """exit_code of a stage that has not ended in order: ``code`` is not 0."""
    if code in (INTERRUPTED, SUSPENDED):
        return code
    if outcome == RunStatus.FAILED:
        # On the way out it is one all the same: the checkpoint may not be there.
        return max(code, FAILED)
    if asked is not None:
        return asked
    return code if code >= 0 else FAILED


def death(code: int, asked: int | None, outcome: str | None) -> str | None:
    """By which signal a stage was killed, in words; None for one that wasn't, or whose end was asked for."""
    if code >= 0 or asked is not None or outcome == RunStatus.FAILED:
        return None
    name = signal.Signals(-code).name
    return f"killed by {name}" + (": likely out of memory" if name == "SIGKILL" else "")


def was_interrupted(run_dir: RunDir, stage: str) -> bool:
    """True when the stage ended in order, but before its work was done."""
    return (run_dir.stage_result(stage) or {}).get("status") == RunStatus.INTERRUPTED


def outcome_of(run_dir: RunDir, stage: str) -> str | None:
    """How training says that it ended: under torchrun its exit code can't."""
    attempts = Attempts(run_dir.attempts).read() if stage == "train" else []
    return attempts[-1].outcome if attempts else None
