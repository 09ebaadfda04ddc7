"""The training stage: load, measure, train, measure again, save. The engine does what differs between accelerators."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import psutil

import trainer.lean_imports  # (before whatever imports transformers' models)
import trainer.lean_peft  # noqa: F401 (before whatever imports peft)
from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.io import write_jsonl
from launcher.jobs.torchrun import is_rank_zero
from launcher.plan.steps import check_enough_rows, total_steps
from launcher.run_dir.layout import RunDir
from launcher.run_dir.result import RunStatus, TrainResult
from trainer.attempt import History, ending_of
from trainer.checkpoint_session import CheckpointSession
from trainer.checkpoints.checkpointer import identity
from trainer.compilation.trial import tracing
from trainer.compilation.watch import Compilations, Watched, check_same_graphs, watch
from trainer.data.prepare import PreparedData, data_notes, prepare
from trainer.data.template_faults import unread_faults
from trainer.engines.base import Engine, FitResult, TrainingCallback, create_engine
from trainer.families.small import over_positions
from trainer.metrics.progress import Progress
from trainer.metrics.recorder import Recorder
from trainer.metrics.throughput import Stopwatch
from trainer.models.fingerprint import fingerprint
from trainer.models.generation import check_generation
from trainer.models.load import run_tokenizer
from trainer.rehearsal import check_room, rehearse
from trainer.result import Reached, train_result
from trainer.samples import generations, side_by_side
from trainer.saving import save_sharded, save_whole
from trainer.signals import StopSignal
from trainer.tracking.run import Tracker


def run(config: Config, run_dir: RunDir) -> dict[str, Any]:
    """Train, or go on; returns the numbers of docs/measurement.md, summed over all replicas."""
    fetched = run_dir.stage_result("fetch")
    if fetched is None:
        raise TrntuneError(f"{run_dir.path}: stage train needs the result of stage fetch: stages=[fetch,train]")
    check_same_graphs(config, run_dir)
    stop = StopSignal()
    stop.install()
    history = History(run_dir) if is_rank_zero() else None
    if history is not None:
        history.begin()
    try:
        result = _train(config, run_dir, fetched, stop, history)
    except BaseException as error:
        if history is not None:
            history.end(*ending_of(error))
        raise
    if history is not None:
        history.end(result["status"])
    return result


def _train(
    config: Config, run_dir: RunDir, fetched: dict[str, Any], stop: StopSignal, history: History | None
) -> dict[str, Any]:
    stopwatch = Stopwatch()
    # The interpreter's start and the imports are the user's time too.
    stopwatch.seconds["load"] = time.time() - psutil.Process().create_time()
    with stopwatch.part("load"):
        engine = create_engine(config)
    run_ = TrainRun(config, run_dir, engine, stopwatch, stop, history)
    try:
        return run_.run(Path(fetched["model_dir"]), Path(fetched["dataset_path"]))
    except BaseException:
        run_.close("KILLED" if stop.requested else "FAILED")
        raise
    finally:
        engine.close()


class TrainRun:
    """One training run on one rank. Rank 0 writes; the others keep step with it."""

    def __init__(
        self,
        config: Config,
        run_dir: RunDir,
        engine: Engine,
        stopwatch: Stopwatch,
        stop: StopSignal,
        history: History | None,
    ) -> None:
        self.config, self.run_dir, self.engine = config, run_dir, engine
        self.stopwatch, self.stop, self.history = stopwatch, stop, history
        self.writes = engine.rank == 0
        self.compilations: Compilations | None = None
        run_name = config.tracking.run_name or run_dir.path.name
        parent = (run_dir.read_job().get("sweep") or {}).get("mlflow_parent_run_id")
        self.tracker = Tracker(config.tracking, run_name, parent, run_dir.tracking) if self.writes else None
        if self.tracker is not None:
            self.tracker.log_config(run_dir, config)

    def run(self, model_dir: Path, dataset_path: Path) -> dict[str, Any]:
        """All of the stage, in order."""
        self.compilations = watch(
            self.config,
            self.run_dir,
            self.engine.rank,
            self.stopwatch,
            lambda text: print(text, file=sys.stderr, flush=True),
        )
        with self.stopwatch.part("load"):
            tokenizer = run_tokenizer(self.config, model_dir)
            template_faults = unread_faults(tokenizer) if self.writes else []
        with self.stopwatch.part("data"):
            data = prepare(self.config, dataset_path, tokenizer)
        if not tracing():  # a trial run is shorter than the one that it is for
            check_enough_rows(self.config, data.filled_rows)
        with self.stopwatch.part("load"):
            check_generation(model_dir)
            self.engine.load(model_dir, tokenizer)
        if self.tracker is not None:
            self.tracker.begin()
        progress = Progress(total_steps(self.config, len(data.train)), visible=self.writes)
        self._introduce(model_dir, progress, data, template_faults)
        metrics = self.run_dir.metrics if self.writes else None
        recorder = Recorder(metrics, self.tracker, progress, self.config.tracking.log_every, self.stop, data.lines)
        session = CheckpointSession(
            self.config,
            self.run_dir,
            self.engine,
            identity(self.config, data.digests(), fingerprint(model_dir) if self.writes else None),
            len(data.train),
            recorder,
            progress,
            self.stopwatch,
            self.history,
        )
        try:
            session.resume()
            with self.stopwatch.part("load"):
                self._rehearse(model_dir, tokenizer, data, session, progress)
            return self._train(model_dir, tokenizer, data, recorder, session, progress)
        finally:
            session.close()

    def _train(
        self,
        model_dir: Path,
        tokenizer: Any,
        data: PreparedData,
        recorder: Recorder,
        session: CheckpointSession,
        progress: Progress,
    ) -> dict[str, Any]:
        """Measure, train, save, measure again."""
        self._settle("load")
        loss_before = self._evaluate(data, recorder, step=0)
        if session.checkpointer.resumed is None:
            session.generations_before = self._generations(tokenizer, data)
        began_as = self._checksums("load")
        outcome = self._fit(data, recorder, session, progress)
        if tracing():  # nothing was executed: there is nothing to save
            return {"status": RunStatus.TRACED}
        if outcome.status == RunStatus.SUSPENDED:
            session.suspend(outcome)
        changed = self._checksums("save") != began_as
        if not changed and outcome.steps:
            progress.message(
                f"warning: {outcome.steps} steps changed none of the trained weights: nothing was learned, and the run "
                "is compared with no other; look at training.learning_rate and at the learning rates in metrics.jsonl"
            )
        with self.stopwatch.part("save"):
            saved = self._save(model_dir, session)
        # From here on what was reached is on disk.
        loss_after = self._evaluate(data, recorder, outcome.best_step or outcome.steps)
        if outcome.status != RunStatus.INTERRUPTED:
            self._record_samples(data, session.generations_before, self._generations(tokenizer, data))
        with self.stopwatch.part("save"):
            session.checkpointer.wait()
        attempts = self.history.attempts.read() if self.history is not None else []
        graphs = {} if self.compilations is None else self.compilations.result()
        reached = Reached(loss_before, loss_after, saved, changed, graphs)
        report, saves = data.report, session.summary
        result = train_result(
            self.config, self.engine, outcome, recorder, report, self.stopwatch, attempts, saves, reached
        )
        self._finish(result, session)
        return result.to_json()

    def _introduce(self, model_dir: Path, progress: Progress, data: PreparedData, notes: list[str]) -> None:
        """Say what will be trained on what, before the first wait."""
        report, counts = data.report, self.engine.parameters()
        progress.message(
            f"{self.config.model.name}, {self.config.method.name}: {counts.trainable:,} of {counts.total:,} parameters "
            f"are trained; {report.train_examples:,} examples in {report.train_rows:,} rows of "
            f"{self.config.training.max_length} tokens ({report.padding_fraction:.1%} padding), "
            f"{report.eval_examples} held out"
        )
        progress.message(f"data: {report.rows_read:,} rows, {report.found}")
        for note in [*self.engine.notes, *notes, *data_notes(report)]:
            progress.message(f"note: {note}")
        if (over := over_positions(model_dir, self.config.training.max_length)) is not None:
            progress.message(f"note: training.max_length={self.config.training.max_length} {over}")

    def _evaluate(self, data: PreparedData, recorder: Recorder, step: int) -> float:
        """The held-out loss of the weights of ``step``; what training has just evaluated is not done again."""
        if step in recorder.held_out:
            return recorder.held_out[step]
        with self.stopwatch.part("eval"):
            loss = self.engine.evaluate(data.eval)
        self._settle("eval")
        if self.compilations is not None:
            self.compilations.after_evaluation()
        recorder.on_evaluation(step, loss)
        return loss

    def _checksums(self, part: str) -> dict[str, int]:
        """Of the weights that are trained; those of a run that goes on are still the first attempt's first ones here
        before ``fit``. Nothing in a trial run, which has no weights."""
        if tracing():
            return {}
        with self.stopwatch.part(part):
            return self.engine.checksums()

    def _settle(self, part: str) -> None:
        """What was compiled in ``part`` is counted as compiling."""
        if self.compilations is not None:
            self.compilations.settle(self.stopwatch, part)

    def _generations(self, tokenizer: Any, data: PreparedData) -> list[str]:
        if not self.writes or not self.engine.can_answer:
            return []
        with self.stopwatch.part("sample"):
            return generations(self.engine, tokenizer, data.held_out[: self.config.tracking.samples], self.config)

    def _fit(self, data: PreparedData, recorder: Recorder, session: CheckpointSession, progress: Progress) -> FitResult:
        """Train. A signal in here ends training after the step at hand."""
        progress.start(session.checkpointer.saved_step)
        observer: TrainingCallback = recorder if self.compilations is None else Watched(recorder, self.compilations)
        try:
            with session.told(), self.stop.deferred(), self.stopwatch.part("train"):
                outcome = self.engine.fit(data.train, data.eval, observer, session.checkpointer, self.stopwatch)
            self._settle("train")
            recorder.flush()
            return outcome
        finally:
            progress.stop()
            if self.history is not None:
                self.history.step = max(self.history.step, len(recorder.steps))

    def _save(self, model_dir: Path, session: CheckpointSession) -> str | None:
        """Write the adapter or the model beside its place, then rename it. An adapter says which base it belongs to."""
        if self.engine.sharded:
            session.checkpointer.wait()  # its thread exchanges with the same peers
            with session.kept():
                save_sharded(self.engine, session.peers, self.run_dir.sharded)
            return self.run_dir.sharded.name
        final = self.run_dir.adapter if self.config.method.name == "lora" else self.run_dir.model
        if self.writes:
            with session.told(), session.kept():
                save_whole(self.engine, self.config, model_dir, final)
        elif self.engine.gathers:
            with session.told():
                self.engine.save(final)
        return final.name

    def _rehearse(
        self, model_dir: Path, tokenizer: Any, data: PreparedData, session: CheckpointSession, progress: Progress
    ) -> None:
        """Try what the end of the run needs."""
        config, run_dir, engine, peers = self.config, self.run_dir, self.engine, session.peers
        with session.kept():
            beside = rehearse(config, run_dir, engine, peers, tokenizer, model_dir, data.held_out[0])
        fault = check_room(config, run_dir, engine, peers, model_dir, total_steps(config, len(data.train)), beside)
        if fault is not None:
            progress.message(f"warning: {fault}")

    def _record_samples(self, data: PreparedData, before: list[str], after: list[str]) -> None:
        if not self.writes or not before or not after:  # a run may go on with weights in parts, which don't answer
            return
        samples = side_by_side(data.held_out[: len(before)], before, after)
        write_jsonl(self.run_dir.samples, samples)
        if self.tracker is not None:
            self.tracker.log_table(samples, "samples.json")

    def _finish(self, result: TrainResult, session: CheckpointSession) -> None:
        """Stop the clock, then hand the result to MLflow: the same numbers there as in the run directory."""
        result.wall_seconds = session.wall_seconds()
        if self.tracker is not None:
            self.tracker.log_result(self.run_dir, result.to_json())
            self.close("KILLED" if result.status == RunStatus.INTERRUPTED else "FINISHED")
            result.mlflow = self.tracker.reference()

    def close(self, status: str) -> None:
        """End the MLflow run, once."""
        if self.tracker is not None:
            self.tracker.close(status)
            sys.stderr.flush()
