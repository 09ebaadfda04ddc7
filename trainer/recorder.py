"""Rank 0's record of the training: metrics.jsonl, MLflow and the progress bar, all from the same numbers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from trainer.engines.base import StepReport
from trainer.progress import Progress
from trainer.stopping import StopSignal
from trainer.throughput import Counts, Step, rates
from trainer.tracking import Tracker


class Recorder:
    """Implements trainer.engines.base.Observer. On ranks other than 0 it only remembers the steps."""

    def __init__(
        self, metrics: Path | None, tracker: Tracker | None, progress: Progress, log_every: int, stop: StopSignal
    ) -> None:
        self.metrics, self.tracker, self.progress = metrics, tracker, progress
        self.log_every, self.stop = log_every, stop
        self.steps: list[Step] = []
        self.consumed, self.train_seconds = Counts(), 0.0
        self.losses: list[float] = []
        self.held_out: dict[int, float] = {}
        self._pending: list[Step] = []
        self._last: StepReport | None = None
        self._started = time.perf_counter()

    def on_step(self, report: StepReport) -> None:
        """Remember the step and, every ``log_every`` steps, write the stretch since the last line."""
        step = Step(report.counts, report.seconds)
        self.steps.append(step)
        self._pending.append(step)
        self.consumed += report.counts
        self.train_seconds += report.seconds
        self.losses.append(report.counts.loss_sum / max(report.counts.trained, 1))
        self.progress.step(report.step, self.losses[-1], report.counts.tokens / report.seconds)
        self._last = report
        if report.step % self.log_every == 0:
            self.flush()

    def on_evaluation(self, step: int, loss: float) -> None:
        """Record a held-out loss, nats a trained token. Step 0 is the untrained model."""
        self.held_out[step] = loss
        self.progress.evaluation(step, loss)
        self._write({"event": "eval", "step": step, "eval_loss": loss}, step)

    def stop_requested(self) -> bool:
        return self.stop.requested

    def flush(self) -> None:
        """Write the steps since the last line, which are fewer than ``log_every`` when training ends."""
        if not self._pending or self._last is None:
            return
        report = self._last
        counts = sum((step.counts for step in self._pending), Counts())
        seconds = sum(step.seconds for step in self._pending)
        self._pending = []
        record = {
            "event": "train",
            "step": report.step,
            "epoch": report.epoch,
            "loss": counts.loss_sum / max(counts.trained, 1),
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "step_seconds": report.seconds,
            **rates(counts, seconds),
        }
        self._write(record, report.step)

    def _write(self, record: dict[str, Any], step: int) -> None:
        record.update(
            examples=self.consumed.examples,
            tokens=self.consumed.tokens,
            trained_tokens=self.consumed.trained,
            train_seconds=self.train_seconds,
            seconds=time.perf_counter() - self._started,
        )
        if self.metrics is not None:
            with self.metrics.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        if self.tracker is not None:
            self.tracker.log_metrics({k: v for k, v in record.items() if k not in ("event", "step")}, step)
