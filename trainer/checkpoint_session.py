"""What the training stage does with its checkpoints: take one up, tell of saves, and say at an end what is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import psutil

from launcher.config.schema import Config
from launcher.errors import SuspendedError, TrntuneError
from launcher.paths import shown
from launcher.run_dir.layout import RunDir
from launcher.run_dir.provenance import installed
from trainer.attempt import History
from trainer.checkpoints.checkpointer import RUN_FILE, STEPS_FILE, Checkpointer, Restored, SaveReport
from trainer.checkpoints.manifest import Position
from trainer.checkpoints.peers import Peers
from trainer.checkpoints.writer import Outcome
from trainer.engines.base import Engine, FitResult, NonFiniteLossError
from trainer.metrics.progress import Progress
from trainer.metrics.recorder import Recorder
from trainer.metrics.throughput import Stopwatch


class CheckpointSession:
    """One rank's, of one attempt. All ranks make the same calls in the same order; rank 0 reports."""

    def __init__(
        self,
        config: Config,
        run_dir: RunDir,
        engine: Engine,
        wanted: dict[str, Any],
        rows: int,
        recorder: Recorder,
        progress: Progress,
        stopwatch: Stopwatch,
        history: History | None,
    ) -> None:
        """``wanted`` is the identity of the run's checkpoints, ``rows`` how many it trains on; ``history`` is kept by
        rank 0 alone."""
        self.config, self.run_dir, self.rows, self.writes = config, run_dir, rows, engine.rank == 0
        self.recorder, self.progress, self.stopwatch, self.history = recorder, progress, stopwatch, history
        self.earlier_seconds = 0.0
        """wall time of the attempts before this one, until the checkpoint that it goes on from"""
        self.generations_before: list[str] = []
        """the untrained model's"""
        self.checkpointer = Checkpointer(
            config,
            run_dir.checkpoints,
            engine.peers(),
            wanted,
            self._position,
            self._state,
            self._report,
            progress.message,
            run_dir.metrics if self.writes else None,
        )

    @property
    def peers(self) -> Peers:
        return self.checkpointer.peers

    @property
    def summary(self) -> SaveReport:
        return self.checkpointer.summary

    def close(self) -> None:
        """Wait for the save under way."""
        self.checkpointer.close()

    def wall_seconds(self) -> float:
        """Of all attempts, without what was lost between a checkpoint and an end."""
        return self.earlier_seconds + time.time() - psutil.Process().create_time()

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        found = self.checkpointer.find()
        if found is None:
            if self.history is not None and self.history.resume(0, 0.0):
                self.progress.message("note: the last attempt left no checkpoint: beginning again")
            return
        state = found.document(RUN_FILE)
        lost = 0
        if self.history is not None:
            lost = self.history.resume(found.step, state["recorder"]["seconds"])
        self.recorder.restore(found.tensors(STEPS_FILE), state["recorder"])
        self.stopwatch.add(state["stopwatch"])
        self.earlier_seconds = state["wall_seconds"]
        self.generations_before = state["answers_before"]
        self._tell_of(found, lost)

    def suspend(self, outcome: FitResult) -> NoReturn:
        """End without a result: the last step's state is saved, or it is said why not."""
        self.checkpointer.wait()
        directory = self.checkpointer.store.directory(outcome.steps)
        if self.checkpointer.saved_step != outcome.steps:
            raise TrntuneError(
                f"stopped after step {outcome.steps}, but {shown(directory)} was not written "
                f"({self.summary.failures[-1]}); started again, it goes on after step {self.checkpointer.saved_step}"
            )
        raise SuspendedError(
            f"stopped after step {outcome.steps}: {shown(directory)} is saved; start it again to go on "
            f"(python launch.py resume={shown(self.run_dir.path)})"
        )

    @contextmanager
    def told(self) -> Iterator[None]:
        """Numbers that are not finite end the run with a word on what is left of it."""
        try:
            yield
        except NonFiniteLossError as error:
            newest = self._newest()
            kept = "none is saved" if newest is None else f"the last good state is {self._shown(newest)}"
            raise TrntuneError(f"{error}; {kept}") from None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Where what was trained can't be saved as it has to be, say how to get it from a checkpoint all the same."""
        try:
            yield
        except NonFiniteLossError:
            raise
        except TrntuneError as error:
            newest = self._newest()
            if newest is None:
                raise
            what = "adapter" if self.config.method.name == "lora" else "model"
            place = self._shown(newest)
            raise TrntuneError(
                f"{error}; python -m postprocess.consolidate {place} OUT makes the {what} of step {newest}"
            ) from None

    def _newest(self) -> int | None:
        """The step of the newest checkpoint, once no save is under way."""
        self.checkpointer.wait()
        steps = self.checkpointer.store.steps()
        return steps[-1] if steps else None

    def _shown(self, step: int) -> str:
        return shown(self.checkpointer.store.directory(step))

    def _position(self, step: int) -> Position:
        """Where in the data a step ends."""
        size = self.config.training.global_batch_size
        per_pass = self.rows // size
        return Position(step // per_pass, step % per_pass * size)

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the stage itself must know to go on."""
        steps, recorded = self.recorder.state()
        return steps, {
            "recorder": recorded,
            "stopwatch": self.stopwatch.so_far(),
            "wall_seconds": self.wall_seconds(),
            "answers_before": self.generations_before,
        }

    def _tell_of(self, found: Restored, lost: int) -> None:
        """Say which checkpoint the run goes on from, and what may differ."""
        again = f"; {lost} steps are done again" if lost else ""
        self.progress.message(f"going on after step {found.step} ({shown(found.directory)}){again}")
        versions = {name: was for name, was in found.manifest.versions.items() if was != installed(name)}
        if versions:
            was = ", ".join(f"{name} {version}" for name, version in versions.items())
            now = ", ".join(str(installed(name)) for name in versions)
            self.progress.message(
                f"warning: that checkpoint was written with {was} (now {now}): results may differ in their last digits"
            )

    def _report(self, outcome: Outcome, stalled: float) -> None:
        """Tell of a save that has ended, for which training waited ``stalled`` seconds."""
        if not self.writes:
            return
        if outcome.failure is not None:
            newest = self.checkpointer.store.steps()
            good = f"the newest good one is step-{newest[-1]}" if newest else "there is none yet"
            self.progress.message(f"warning: checkpoint step-{outcome.step} was not written: {outcome.failure}; {good}")
            self.recorder.on_checkpoint(outcome.step, {"failure": outcome.failure})
            return
        if outcome.warning is not None:
            self.progress.message(f"warning: {outcome.warning}")
        self.recorder.on_checkpoint(
            outcome.step,
            {
                "checkpoint_bytes": outcome.bytes,
                "checkpoint_write_seconds": outcome.seconds,
                "checkpoint_stall_seconds": stalled,
            },
        )
