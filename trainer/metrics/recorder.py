"""Rank 0's record of the training: metrics.jsonl, MLflow and the progress bar, all from the same numbers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.errors import TrntuneError
from launcher.paths import shown
from trainer.metrics.progress import Progress
from trainer.metrics.throughput import Counts, Step, StepReport, rates
from trainer.signals import Stop, StopSignal
from trainer.tracking.run import Tracker

# What a line holds beside numbers over time.
_NOT_METRICS = ("event", "step", "sample_ids", "failure")


@dataclass(frozen=True)
class _Last:
    """What a line says of the last step of its stretch."""

    step: int
    epoch: float
    learning_rate: float
    grad_norm: float | None
    seconds: float


class Recorder:
    """Implements trainer.engines.base.TrainingCallback. On ranks other than 0 it only remembers the steps."""

    def __init__(
        self,
        metrics: Path | None,
        tracker: Tracker | None,
        progress: Progress,
        log_every: int,
        stop: StopSignal,
        lines_of: Callable[[list[int]], list[int]],
    ) -> None:
        """``lines_of`` gives the lines of the data set that training rows hold."""
        self.metrics, self.tracker, self.progress = metrics, tracker, progress
        self.log_every, self.stop, self.lines = log_every, stop, lines_of
        self.steps: list[Step] = []
        self.consumed, self.train_seconds = Counts(), 0.0
        self.losses: list[float] = []
        self.held_out: dict[int, float] = {}
        self._pending = 0
        self._pending_lines: list[int] = []
        self._last: _Last | None = None
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since training began to be recorded, over all attempts."""
        return time.perf_counter() - self._started

    def on_step(self, report: StepReport) -> None:
        """Remember the step and, every ``log_every`` steps, write the stretch since the last line."""
        self._count(Step(report.counts, report.seconds))
        self._pending += 1
        self._pending_lines += self.lines(report.rows) if self.metrics is not None else []
        self.progress.step(report.step, self.losses[-1], report.counts.tokens / report.seconds)
        self._last = _Last(report.step, report.epoch, report.learning_rate, report.grad_norm, report.seconds)
        if report.step % self.log_every == 0:
            self.flush()

    def on_evaluation(self, step: int, loss: float) -> None:
        """Record a held-out loss, nats a trained token. Step 0 is the untrained model."""
        self.held_out[step] = loss
        self.progress.evaluation(step, loss)
        self._write({"event": "eval", "step": step, "eval_loss": loss}, step)

    def on_checkpoint(self, step: int, record: dict[str, Any]) -> None:
        """Record how a save ended."""
        self._write({"event": "checkpoint", "step": step, **record}, step)

    def stop_requested(self) -> Stop:
        return self.stop.requested

    def flush(self) -> None:
        """Write the steps since the last line, which are fewer than ``log_every`` when training ends."""
        if not self._pending or self._last is None:
            return
        last, pending = self._last, self.steps[-self._pending :]
        counts = sum((step.counts for step in pending), Counts())
        seconds = sum(step.seconds for step in pending)
        record = {
            "event": "train",
            "step": last.step,
            "epoch": last.epoch,
            "loss": counts.loss_sum / max(counts.trained, 1),
            "learning_rate": last.learning_rate,
            "grad_norm": last.grad_norm,
            "step_seconds": last.seconds,
            **rates(counts, seconds),
            "sample_ids": self._pending_lines,
        }
        self._pending, self._pending_lines = 0, []
        self._write(record, last.step)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """For a checkpoint: the steps as float64 [steps, counts + seconds], and the rest as JSON."""
        rows = [[*step.counts.as_list(), step.seconds] for step in self.steps]
        width = len(Counts().as_list()) + 1
        document = {
            "held_out": {str(step): loss for step, loss in self.held_out.items()},
            "pending": self._pending,
            "pending_lines": list(self._pending_lines),
            "last": None if self._last is None else asdict(self._last),
            "seconds": self.seconds,
            "metrics_bytes": self._size(),
        }
        return {"steps": torch.tensor(rows, dtype=torch.float64).reshape(-1, width)}, document

    def restore(self, tensors: dict[str, torch.Tensor], document: dict[str, Any]) -> None:
        """Go on as when ``state`` was taken; metrics.jsonl loses what was written after it."""
        for row in tensors["steps"].tolist():
            self._count(Step(Counts.from_list(row[:-1]), row[-1]))
        self.held_out = {int(step): loss for step, loss in document["held_out"].items()}
        self._pending, self._pending_lines = document["pending"], document["pending_lines"]
        self._last = None if document["last"] is None else _Last(**document["last"])
        self._started -= document["seconds"]
        if self.metrics is not None:
            self._cut(self.metrics, document["metrics_bytes"])

    def _cut(self, metrics: Path, size: int) -> None:
        """Take off what was written after the checkpoint; say so where something from before it is gone."""
        found = metrics.stat().st_size if metrics.exists() else 0
        if found > size:
            os.truncate(metrics, size)
        elif found < size:
            self.progress.message(
                f"warning: {shown(metrics)} has {found:,} bytes, not the {size:,} that it had at the checkpoint: lines "
                "of earlier steps are gone"
            )

    def _count(self, step: Step) -> None:
        self.steps.append(step)
        self.consumed += step.counts
        self.train_seconds += step.seconds
        self.losses.append(step.counts.loss_sum / max(step.counts.trained, 1))

    def _size(self) -> int:
        """Bytes of metrics.jsonl; whoever writes the checkpoint sees to it that they are on the disk before it."""
        return self.metrics.stat().st_size if self.metrics is not None and self.metrics.exists() else 0

    def _write(self, record: dict[str, Any], step: int) -> None:
        record.update(
            examples=self.consumed.examples,
            tokens=self.consumed.tokens,
            trained_tokens=self.consumed.trained,
            train_seconds=self.train_seconds,
            seconds=self.seconds,
        )
        if self.metrics is not None:
            try:
                with self.metrics.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(record) + "\n")
            except OSError as error:
                raise TrntuneError(f"{self.metrics} can't be written: {error.strerror}; free room there") from None
        if self.tracker is not None:
            self.tracker.log_metrics({k: v for k, v in record.items() if k not in _NOT_METRICS}, step)
