"""Signals during training ask for an end after the step at hand; before training there is nothing to keep."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import Any

from launcher.errors import SuspendedError


class Stop(IntEnum):
    """What a signal asks for."""

    NO = 0
    SAVE_AND_FINISH = 1
    """end with what was reached: save it, evaluate it (Ctrl-C)"""
    CHECKPOINT_AND_EXIT = 2
    """the machine is wanted back: a checkpoint and nothing more (SIGTERM; SIGUSR2, Slurm's before a time limit)"""


_ASKS = {
    signal.SIGINT: Stop.SAVE_AND_FINISH,
    signal.SIGTERM: Stop.CHECKPOINT_AND_EXIT,
    signal.SIGUSR2: Stop.CHECKPOINT_AND_EXIT,
}


class BestEvaluation:
    """Early stopping: which evaluation is the best one, and how many came after it without a lower loss."""

    def __init__(self, patience: int | None, min_delta: float) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.loss = math.inf
        self.step: int | None = None
        self.without_progress = 0

    @property
    def ended(self) -> bool:
        """True when patience has run out."""
        return self.patience is not None and self.without_progress >= self.patience

    def look(self, step: int, loss: float) -> bool:
        """Take an evaluation into account. True when its weights are to be kept: never without early stopping."""
        if self.patience is None:
            return False
        better = loss < self.loss - self.min_delta
        if better:
            self.loss, self.step, self.without_progress = loss, step, 0
        else:
            self.without_progress += 1
        return better

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint; None without a best evaluation."""
        if self.step is None:
            return None
        return {"loss": self.loss, "step": self.step, "without_progress": self.without_progress}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as when ``state`` was taken."""
        self.loss, self.step, self.without_progress = state["loss"], state["step"], state["without_progress"]


class StopSignal:
    """Turns SIGINT, SIGTERM and SIGUSR2 into a wish that the training loop reads after the step at hand."""

    def __init__(self) -> None:
        self.requested = Stop.NO
        self._deferred = False

    def install(self) -> None:
        """Handle the signals in this process from here on."""
        for number in _ASKS:
            signal.signal(number, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets ``requested``; outside it raises KeyboardInterrupt or Suspended."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = max(self.requested, _ASKS[signal.Signals(number)])
        if self._deferred:
            return
        if self.requested == Stop.CHECKPOINT_AND_EXIT:
            raise SuspendedError(f"stopped by {signal.Signals(number).name}; start it again to go on")
        raise KeyboardInterrupt
