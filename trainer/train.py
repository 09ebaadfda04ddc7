"""The training stage: load, measure, train, measure again, save. The engine does what differs between accelerators."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from launcher.errors import TrntuneError
from launcher.rundir import RunDir, write_jsonl
from launcher.schema import Config
from trainer.data.prepare import PreparedData, prepare
from trainer.engines.base import Engine, FitResult, create_engine
from trainer.models.fingerprint import write_base
from trainer.models.load import load_tokenizer
from trainer.progress import Progress
from trainer.recorder import Recorder
from trainer.report import train_result
from trainer.samples import answers, side_by_side
from trainer.stopping import StopSignal
from trainer.throughput import Stopwatch
from trainer.tracking import Tracker


def run(config: Config, run_dir: RunDir) -> dict[str, Any]:
    """Train; returns the numbers of docs/measurement.md, summed over all replicas."""
    fetched = run_dir.stage_result("fetch")
    if fetched is None:
        raise TrntuneError(f"{run_dir.path}: stage train needs the result of stage fetch: stages=[fetch,train]")
    stop = StopSignal()
    stop.install()
    stopwatch = Stopwatch()
    # The interpreter's start and the imports are the user's time too.
    stopwatch.seconds["load"] = time.time() - psutil.Process().create_time()
    with stopwatch.part("load"):
        engine = create_engine(config)
    run_ = TrainRun(config, run_dir, engine, stopwatch, stop)
    try:
        return run_.run(Path(fetched["model_dir"]), Path(fetched["dataset_path"]))
    except BaseException:
        run_.close("KILLED" if stop.requested else "FAILED")
        raise
    finally:
        engine.close()


class TrainRun:
    """One training run on one rank. Rank 0 writes; the others keep step with it."""

    def __init__(self, config: Config, run_dir: RunDir, engine: Engine, stopwatch: Stopwatch, stop: StopSignal) -> None:
        self.config, self.run_dir, self.engine = config, run_dir, engine
        self.stopwatch, self.stop = stopwatch, stop
        self.writes = engine.rank == 0
        run_name = config.tracking.run_name or run_dir.path.name
        parent = (run_dir.read_job().get("sweep") or {}).get("mlflow_parent_run_id")
        self.tracker = Tracker(config.tracking, run_name, parent) if self.writes else None
        if self.tracker is not None:
            self.tracker.log_config(run_dir, config)

    def run(self, model_dir: Path, dataset_path: Path) -> dict[str, Any]:
        """All of the stage, in order."""
        with self.stopwatch.part("load"):
            tokenizer = load_tokenizer(model_dir)
        with self.stopwatch.part("data"):
            data = prepare(self.config, dataset_path, tokenizer)
        with self.stopwatch.part("load"):
            self.engine.load(model_dir, tokenizer)
        progress = Progress(self.engine.total_steps(len(data.train)), visible=self.writes)
        self._introduce(progress, data)
        metrics = self.run_dir.metrics if self.writes else None
        recorder = Recorder(metrics, self.tracker, progress, self.config.tracking.log_every, self.stop)

        loss_before = self._evaluate(data, recorder, step=0)
        answers_before = self._answers(tokenizer, data)
        outcome = self._fit(data, recorder, progress)
        with self.stopwatch.part("save"):
            saved = self._save(model_dir)
        # From here on what was reached is on disk.
        loss_after = self._evaluate(data, recorder, outcome.best_step or outcome.steps)
        if outcome.status != "interrupted":
            self._record_samples(data, answers_before, self._answers(tokenizer, data))
        result = train_result(self.config, self.engine, outcome, recorder, data.report, self.stopwatch)
        result.update(eval_loss_before=loss_before, eval_loss_after=loss_after, saved=saved)
        self._finish(result)
        return result

    def _introduce(self, progress: Progress, data: PreparedData) -> None:
        """Say what will be trained on what, before the first wait."""
        report, counts = data.report, self.engine.parameters()
        progress.message(
            f"{self.config.model.name}, {self.config.method.name}: {counts.trainable:,} of {counts.total:,} parameters "
            f"are trained; {report.train_examples:,} examples in {report.train_rows:,} rows of "
            f"{self.config.training.max_length} tokens ({report.padding_fraction:.1%} padding), "
            f"{report.eval_examples} held out"
        )
        for count, what in (
            (report.rows_skipped, "broken rows were skipped"),
            (report.truncated, "examples were cut at training.max_length"),
            (report.dropped, "examples were dropped: their prompt alone fills training.max_length"),
        ):
            if count:
                progress.message(f"note: {count:,} {what}")

    def _evaluate(self, data: PreparedData, recorder: Recorder, step: int) -> float:
        """The held-out loss of the weights of ``step``; what training has just evaluated is not done again."""
        if step in recorder.held_out:
            return recorder.held_out[step]
        with self.stopwatch.part("eval"):
            loss = self.engine.evaluate(data.eval)
        recorder.on_evaluation(step, loss)
        return loss

    def _answers(self, tokenizer: Any, data: PreparedData) -> list[str]:
        if not self.writes:
            return []
        with self.stopwatch.part("sample"):
            return answers(self.engine, tokenizer, data.held_out[: self.config.tracking.samples], self.config)

    def _fit(self, data: PreparedData, recorder: Recorder, progress: Progress) -> FitResult:
        """Train. Ctrl-C in here ends training after the step at hand."""
        progress.start()
        try:
            with self.stop.deferred(), self.stopwatch.part("train"):
                outcome = self.engine.fit(data.train, data.eval, recorder, self.run_dir.path, self.stopwatch)
            recorder.flush()
            return outcome
        finally:
            progress.stop()

    def _save(self, model_dir: Path) -> str | None:
        """Write the adapter or the model beside its place, then rename it. An adapter says which base it belongs to."""
        final = self.run_dir.adapter if self.config.method.name == "lora" else self.run_dir.model
        if self.writes:
            temporary = final.with_name(f"{final.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                self.engine.save(temporary)
                if final == self.run_dir.adapter:
                    write_base(temporary, model_dir, self.config.model.name)
                temporary.rename(final)
            except OSError as error:
                shutil.rmtree(temporary, ignore_errors=True)
                raise TrntuneError(f"{final} can't be written: {error}; free room there") from None
        return final.name

    def _record_samples(self, data: PreparedData, before: list[str], after: list[str]) -> None:
        if not self.writes or not before:
            return
        samples = side_by_side(data.held_out[: len(before)], before, after)
        write_jsonl(self.run_dir.samples, samples)
        if self.tracker is not None:
            self.tracker.log_table(samples, "samples.json")

    def _finish(self, result: dict[str, Any]) -> None:
        """Stop the clock, then hand the result to MLflow: the same numbers there as in the run directory."""
        result["wall_seconds"] = time.time() - psutil.Process().create_time()
        if self.tracker is not None:
            self.tracker.log_result(self.run_dir, result)
            self.close("KILLED" if result["status"] == "interrupted" else "FINISHED")
            result["mlflow"] = self.tracker.reference()

    def close(self, status: str) -> None:
        """End the MLflow run, once."""
        if self.tracker is not None:
            self.tracker.close(status)
            sys.stderr.flush()
