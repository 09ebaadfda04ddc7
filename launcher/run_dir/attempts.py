"""attempts.jsonl: every start of a run's training stage, how far it got, and how it ended.

A process that was killed can't say so: the next one writes its end. Retrying ends when attempts get no further.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.secrets import redact
from launcher.errors import INTERRUPTED, SUSPENDED, TrntuneError
from launcher.io import flush
from launcher.paths import shown
from launcher.run_dir.layout import RunDir
from launcher.run_dir.reached import furthest_step
from launcher.run_dir.result import COMPLETE, RunStatus

MAX_WITHOUT_PROGRESS = 3
ATTEMPT = "TRNTUNE_ATTEMPT"
"""the number of the start, for the process that is started"""
# Ends that the user or the work itself brought about: they say nothing about the next attempt.
GOOD = (*COMPLETE, RunStatus.INTERRUPTED)


@dataclass(frozen=True)
class Attempt:
    """One start of the training stage."""

    number: int
    from_step: int = 0
    """step of the checkpoint that it went on from; 0: from the beginning"""
    outcome: str | None = None
    """finished, early_stopped, interrupted, suspended, failed, died; None: it has not ended, or could not say so"""
    step: int | None = None
    """last step that it finished"""
    lost_steps: int = 0
    """steps after its last checkpoint, which the next attempt does again"""
    lost_seconds: float = 0.0
    reason: str | None = None
    changed: bool = False
    """the configuration was changed after it: the next attempt is another one"""
    begun: bool = True
    """False: its process has ended, or is, before the point from which it speaks for itself"""


class Attempts:
    """The file, one JSON object a line; a line that a crash cut off is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Attempt]:
        """All attempts, in order."""
        found: dict[int, dict[str, Any]] = {}
        for line in self._lines():
            known = {key: value for key, value in line.items() if key in Attempt.__dataclass_fields__}
            found.setdefault(line["number"], {}).update(known)
        return [Attempt(**fields) for _, fields in sorted(found.items())]

    def launch(self) -> int:
        """Record that a process is about to be started. Returns the attempt's number, from 1."""
        number = max((attempt.number for attempt in self.read()), default=0) + 1
        self._append({"number": number, "event": "launch", "begun": False, **_place()})
        return number

    def start(self, number: int) -> None:
        """Record that the process of an attempt is at work."""
        self._append({"number": number, "event": "start", "begun": True, **_place()})

    def handed_over(self) -> int | None:
        """The number under which this process was started, if it is the last one and has not begun."""
        past = self.read()
        waits = past and not past[-1].begun and past[-1].outcome is None
        return past[-1].number if waits and os.environ.get(ATTEMPT) == str(past[-1].number) else None

    def resume(self, number: int, from_step: int) -> None:
        """Record where an attempt begins."""
        self._append({"number": number, "event": "resume", "from_step": from_step})

    def lose(self, number: int, steps: int, seconds: float) -> None:
        """Record what the attempt did after its last checkpoint."""
        self._append({"number": number, "event": "lose", "lost_steps": steps, "lost_seconds": seconds})

    def end(self, number: int, outcome: str, step: int, reason: str | None = None) -> None:
        """Record how an attempt ended."""
        self._append({"number": number, "event": "end", "outcome": outcome, "step": step, "reason": reason})

    def end_unbegun(self, number: int, outcome: str, step: int, reason: str) -> None:
        """Record the end of an attempt whose process could not do so: it ended too early."""
        if any(past.number == number and not past.begun and past.outcome is None for past in self.read()):
            self.end(number, outcome, step, reason)

    def changed(self) -> None:
        """Record that the configuration was changed: what ended the last attempts may not end the next."""
        past = self.read()
        if past:
            self._append({"number": past[-1].number, "event": "changed", "changed": True})

    def _append(self, record: dict[str, Any]) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        existing = self.path.read_bytes() if self.path.exists() else b""
        # After a line that a crash cut off a new one begins.
        separator = b"\n" if existing and not existing.endswith(b"\n") else b""
        with self.path.open("ab") as stream:
            stream.write(separator + json.dumps({"time": now, **record}).encode() + b"\n")
            flush(stream)

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [line for line in found if isinstance(line, dict) and "number" in line]


def _place() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job_id": os.environ.get("SLURM_JOB_ID")}


def launch(run_dir: RunDir) -> int:
    """Write down how the last attempt ended if it could not, and that one more is started. Returns its number.

    Raises TrntuneError when the last ones got no further, one after the other.
    """
    attempts = Attempts(run_dir.attempts)
    past = attempts.read()
    if past and past[-1].outcome is None:
        attempts.end(past[-1].number, RunStatus.DIED, furthest_step(run_dir))
    if reason := verdict(attempts.read(), Path(shown(run_dir.attempts))):
        raise TrntuneError(f"{shown(run_dir.path)}: {reason}")
    return attempts.launch()


def counted(run_dir: RunDir, start: Callable[[Mapping[str, str]], int]) -> int:
    """Start training by ``start``, which takes variables for its process and returns an exit code, as an attempt that
    counts also when it dies before it can say anything: of an import, a driver, memory, or nodes that don't meet.

    Raises TrntuneError when the last attempts got no further, and whatever ``start`` raises.
    """
    number, step = launch(run_dir), furthest_step(run_dir)
    try:
        code = start({ATTEMPT: str(number)})
    except TrntuneError as error:
        Attempts(run_dir.attempts).end_unbegun(number, RunStatus.FAILED, step, redact(str(error))[:300])
        raise
    if code != 0:
        outcome = {INTERRUPTED: RunStatus.INTERRUPTED, SUSPENDED: RunStatus.SUSPENDED}.get(code, RunStatus.FAILED)
        why = f"it ended before it could begin to train, with exit code {code}: its log says why"
        Attempts(run_dir.attempts).end_unbegun(number, outcome, step, why)
    return code


def without_progress(attempts: list[Attempt]) -> tuple[int, int]:
    """How many attempts in a row, up to the last, got no further than the furthest step, and that step.

    The one that got there first counts too: three that die at the same step are three. A good end begins anew.
    """
    count, furthest = 0, -1
    for attempt in attempts:
        step = attempt.step or 0
        if step > furthest:
            count, furthest = 1, step
        else:
            count += 1
        if attempt.outcome in GOOD or attempt.changed:
            count, furthest = 0, -1
    return count, max(furthest, 0)


def verdict(attempts: list[Attempt], path: Path) -> str | None:
    """Why there is no point in another attempt, or None."""
    count, step = without_progress(attempts)
    if count < MAX_WITHOUT_PROGRESS:
        return None
    last = attempts[-1]
    how = f"; the last one {last.outcome}: {last.reason}" if last.reason else f"; the last one {last.outcome}"
    return (
        f"{count} attempts in a row got no further than step {step}{how}. It is not tried again: find the cause, "
        f"then delete {path} to start it once more"
    )
