"""The training stage: load, measure, train, measure again, save. The engine does what differs between accelerators."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import psutil

import trainer.lean_imports  # noqa: F401 (before whatever imports transformers' models)
from launcher.config.schema import Config
from launcher.config.secrets import redact
from launcher.errors import SuspendedError, TrntuneError, in_one_line
from launcher.jobs.run_stage import is_rank_zero
from launcher.paths import shown
from launcher.plan.steps import refuse_few_rows, total_steps
from launcher.run_dir.layout import RunDir, write_jsonl
from launcher.run_dir.provenance import installed
from trainer.attempt import History
from trainer.checkpoints.checkpointer import RUN_FILE, STEPS_FILE, Checkpointer, identity
from trainer.checkpoints.manifest import Position
from trainer.checkpoints.writer import Outcome
from trainer.compilation.trial import tracing
from trainer.compilation.watch import Graphs, Watched, refuse_other_graphs, watch
from trainer.data.prepare import PreparedData, data_notes, prepare
from trainer.data.template_faults import unread_faults
from trainer.engines.base import Engine, FitResult, NonFiniteLossError, TrainingCallback, create_engine
from trainer.families.small import over_positions
from trainer.metrics.progress import Progress
from trainer.metrics.recorder import Recorder
from trainer.metrics.throughput import Stopwatch
from trainer.models.fingerprint import fingerprint, write_base
from trainer.models.generation import check_generation
from trainer.models.load import run_tokenizer
from trainer.rehearsal import MAX_WORDS, check_room, rehearse
from trainer.result import train_result
from trainer.samples import answers, side_by_side
from trainer.saving import replace_directory, save_sharded
from trainer.signals import StopSignal
from trainer.tracking.run import Tracker


def run(config: Config, run_dir: RunDir) -> dict[str, Any]:
    """Train, or go on; returns the numbers of docs/measurement.md, summed over all replicas."""
    fetched = run_dir.stage_result("fetch")
    if fetched is None:
        raise TrntuneError(f"{run_dir.path}: stage train needs the result of stage fetch: stages=[fetch,train]")
    refuse_other_graphs(config, run_dir)
    stop = StopSignal()
    stop.install()
    history = History(run_dir) if is_rank_zero() else None
    if history is not None:
        history.begin()
    try:
        result = _train(config, run_dir, fetched, stop, history)
    except BaseException as error:
        if history is not None:
            history.end(*_ending(error))
        raise
    if history is not None:
        history.end(result["status"])
    return result


def _ending(error: BaseException) -> tuple[str, str | None]:
    """Outcome and reason of an attempt that ended without a result."""
    if isinstance(error, SuspendedError):
        return "suspended", None
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", None
    return "failed", redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]


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
        self.earlier_seconds = 0.0
        """wall time of the attempts before this one, until the checkpoint that it goes on from"""
        self.answers_before: list[str] = []
        self.graphs: Graphs | None = None
        run_name = config.tracking.run_name or run_dir.path.name
        parent = (run_dir.read_job().get("sweep") or {}).get("mlflow_parent_run_id")
        self.tracker = Tracker(config.tracking, run_name, parent, run_dir.tracking) if self.writes else None
        if self.tracker is not None:
            self.tracker.log_config(run_dir, config)

    def run(self, model_dir: Path, dataset_path: Path) -> dict[str, Any]:
        """All of the stage, in order."""
        if self.writes:
            self.graphs = watch(self.config, self.run_dir, lambda text: print(text, file=sys.stderr, flush=True))
        with self.stopwatch.part("load"):
            tokenizer = run_tokenizer(self.config, model_dir)
            template_faults = unread_faults(tokenizer) if self.writes else []
        with self.stopwatch.part("data"):
            data = prepare(self.config, dataset_path, tokenizer)
        if not tracing():  # a trial run is shorter than the one that it is for
            refuse_few_rows(self.config, data.filled_rows)
        with self.stopwatch.part("load"):
            check_generation(model_dir)
            self.engine.load(model_dir, tokenizer)
        if self.tracker is not None:
            self.tracker.begin()
        progress = Progress(total_steps(self.config, len(data.train)), visible=self.writes)
        self._introduce(model_dir, progress, data, template_faults)
        metrics = self.run_dir.metrics if self.writes else None
        recorder = Recorder(metrics, self.tracker, progress, self.config.tracking.log_every, self.stop, data.lines)
        checkpointer = self._checkpointer(model_dir, data, recorder, progress)
        try:
            self._resume(checkpointer, recorder, progress)
            with self.stopwatch.part("load"):
                self._rehearse(model_dir, tokenizer, data, checkpointer, progress)
            return self._train(model_dir, tokenizer, data, recorder, checkpointer, progress)
        finally:
            checkpointer.close()

    def _train(
        self,
        model_dir: Path,
        tokenizer: Any,
        data: PreparedData,
        recorder: Recorder,
        checkpointer: Checkpointer,
        progress: Progress,
    ) -> dict[str, Any]:
        """Measure, train, save, measure again."""
        self._settle("load")
        loss_before = self._evaluate(data, recorder, step=0)
        if checkpointer.resumed is None:
            self.answers_before = self._answers(tokenizer, data)
        began_as = self._checksums("load")
        outcome = self._fit(data, recorder, checkpointer, progress)
        if tracing():  # nothing was executed: there is nothing to save
            return {"status": "traced"}
        if outcome.status == "suspended":
            self._suspend(outcome, checkpointer)
        changed = self._checksums("save") != began_as
        if not changed and outcome.steps:
            progress.message(
                f"warning: {outcome.steps} steps changed none of the trained weights: nothing was learned, and the run "
                "is compared with no other; look at training.learning_rate and at the learning rates in metrics.jsonl"
            )
        with self.stopwatch.part("save"):
            saved = self._save(model_dir, checkpointer)
        # From here on what was reached is on disk.
        loss_after = self._evaluate(data, recorder, outcome.best_step or outcome.steps)
        if outcome.status != "interrupted":
            self._record_samples(data, self.answers_before, self._answers(tokenizer, data))
        with self.stopwatch.part("save"):
            checkpointer.wait()
        if self.graphs is not None:
            self.graphs.check()
        attempts = self.history.attempts.read() if self.history is not None else []
        result = train_result(
            self.config, self.engine, outcome, recorder, data.report, self.stopwatch, attempts, checkpointer.summary
        )
        result.update(eval_loss_before=loss_before, eval_loss_after=loss_after, saved=saved, weights_changed=changed)
        result.update({} if self.graphs is None else self.graphs.result())
        self._finish(result)
        return result

    def _checkpointer(
        self, model_dir: Path, data: PreparedData, recorder: Recorder, progress: Progress
    ) -> Checkpointer:
        base = fingerprint(model_dir) if self.writes else None
        per_pass = len(data.train) // self.config.training.global_batch_size

        def position(step: int) -> Position:
            return Position(step // per_pass, step % per_pass * self.config.training.global_batch_size)

        def report(outcome: Outcome, stalled: float) -> None:
            if self.writes:
                self._report_save(outcome, stalled, checkpointer, recorder, progress)

        checkpointer = Checkpointer(
            self.config,
            self.run_dir.checkpoints,
            self.engine.peers(),
            identity(self.config, data.digest(), base),
            position,
            lambda: self._state(recorder),
            report,
            progress.message,
            self.run_dir.metrics if self.writes else None,
        )
        return checkpointer

    def _state(self, recorder: Recorder) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the stage itself must know to go on."""
        steps, recorded = recorder.state()
        return steps, {
            "recorder": recorded,
            "stopwatch": self.stopwatch.so_far(),
            "wall_seconds": self._wall_seconds(),
            "answers_before": self.answers_before,
        }

    def _resume(self, checkpointer: Checkpointer, recorder: Recorder, progress: Progress) -> None:
        """Take up the newest checkpoint, if there is one."""
        found = checkpointer.find()
        if found is None:
            if self.history is not None and self.history.resume(0, 0.0):
                progress.message("note: the last attempt left no checkpoint: beginning again")
            return
        state = found.document(RUN_FILE)
        lost = 0
        if self.history is not None:
            lost = self.history.resume(found.step, state["recorder"]["seconds"])
        recorder.restore(found.tensors(STEPS_FILE), state["recorder"])
        self.stopwatch.add(state["stopwatch"])
        self.earlier_seconds = state["wall_seconds"]
        self.answers_before = state["answers_before"]
        again = f"; {lost} steps are done again" if lost else ""
        progress.message(f"going on after step {found.step} ({shown(found.directory)}){again}")
        versions = {name: was for name, was in found.manifest.versions.items() if was != installed(name)}
        if versions:
            was = ", ".join(f"{name} {version}" for name, version in versions.items())
            progress.message(
                f"warning: that checkpoint was written with {was}: results may differ in their last digits"
            )

    def _report_save(
        self, outcome: Outcome, stalled: float, checkpointer: Checkpointer, recorder: Recorder, progress: Progress
    ) -> None:
        """Tell of a save that has ended."""
        if outcome.failure is not None:
            newest = checkpointer.store.steps()
            good = f"the newest good one is step-{newest[-1]}" if newest else "there is none yet"
            progress.message(f"warning: checkpoint step-{outcome.step} was not written: {outcome.failure}; {good}")
            recorder.on_checkpoint(outcome.step, {"failure": outcome.failure})
            return
        if outcome.warning is not None:
            progress.message(f"warning: {outcome.warning}")
        recorder.on_checkpoint(
            outcome.step,
            {
                "checkpoint_bytes": outcome.bytes,
                "checkpoint_write_seconds": outcome.seconds,
                "checkpoint_stall_seconds": stalled,
            },
        )

    def _suspend(self, outcome: FitResult, checkpointer: Checkpointer) -> NoReturn:
        """End without a result: the last step's state is saved, or it is said why not."""
        checkpointer.wait()
        directory = checkpointer.store.directory(outcome.steps)
        if checkpointer.saved_step != outcome.steps:
            raise TrntuneError(
                f"stopped after step {outcome.steps}, but {shown(directory)} was not written "
                f"({checkpointer.summary.failures[-1]}); started again, it goes on after step {checkpointer.saved_step}"
            )
        raise SuspendedError(
            f"stopped after step {outcome.steps}: {shown(directory)} is saved; start it again to go on "
            f"(python launch.py resume={shown(self.run_dir.path)})"
        )

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
        if self.graphs is not None:
            self.graphs.settle(self.stopwatch, part)

    def _answers(self, tokenizer: Any, data: PreparedData) -> list[str]:
        if not self.writes or not self.engine.can_answer:
            return []
        with self.stopwatch.part("sample"):
            return answers(self.engine, tokenizer, data.held_out[: self.config.tracking.samples], self.config)

    def _fit(self, data: PreparedData, recorder: Recorder, checkpointer: Checkpointer, progress: Progress) -> FitResult:
        """Train. A signal in here ends training after the step at hand."""
        progress.start(checkpointer.saved_step)
        observer: TrainingCallback = recorder if self.graphs is None else Watched(recorder, self.graphs)
        try:
            with self._told(checkpointer), self.stop.deferred(), self.stopwatch.part("train"):
                outcome = self.engine.fit(data.train, data.eval, observer, checkpointer, self.stopwatch)
            self._settle("train")
            recorder.flush()
            return outcome
        finally:
            progress.stop()
            if self.history is not None:
                self.history.step = max(self.history.step, len(recorder.steps))

    @contextmanager
    def _told(self, checkpointer: Checkpointer) -> Iterator[None]:
        """Numbers that are not finite end the run with a word on what is left of it."""
        try:
            yield
        except NonFiniteLossError as error:
            checkpointer.wait()
            steps = checkpointer.store.steps()
            kept = (
                f"the last good state is {shown(checkpointer.store.directory(steps[-1]))}" if steps else "none is saved"
            )
            raise TrntuneError(f"{error}; {kept}") from None

    def _save(self, model_dir: Path, checkpointer: Checkpointer) -> str | None:
        """Write the adapter or the model beside its place, then rename it. An adapter says which base it belongs to."""
        lora = self.config.method.name == "lora"
        if self.engine.sharded:
            checkpointer.wait()  # its thread exchanges with the same peers
            with self._kept(checkpointer):
                save_sharded(self.engine, checkpointer.peers, self.run_dir.sharded)
            return self.run_dir.sharded.name
        final = self.run_dir.adapter if lora else self.run_dir.model
        if self.writes:
            with self._told(checkpointer), self._kept(checkpointer):
                self._write(final, model_dir)
        return final.name

    def _write(self, final: Path, model_dir: Path) -> None:
        """What the engine saves, in its place. Raises TrntuneError, in one line, for whatever fails."""
        temporary = final.with_name(f"{final.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            self.engine.save(temporary)
            if self.config.method.name == "lora":
                write_base(temporary, model_dir, self.config.model.name)
            replace_directory(temporary, final)
        except (TrntuneError, SuspendedError):
            raise
        except Exception as error:  # of the disk, transformers, peft, tokenizers, or of a model's own code
            shutil.rmtree(temporary, ignore_errors=True)
            advice = "; free room there" if isinstance(error, OSError) else ""
            raise TrntuneError(f"{final} can't be written: {in_one_line(error, MAX_WORDS)}{advice}") from None

    @contextmanager
    def _kept(self, checkpointer: Checkpointer) -> Iterator[None]:
        """Where what was trained can't be saved as it has to be, say how to get it from a checkpoint all the same."""
        try:
            yield
        except NonFiniteLossError:
            raise
        except TrntuneError as error:
            checkpointer.wait()
            steps = checkpointer.store.steps()
            if not steps:
                raise
            newest = shown(checkpointer.store.directory(steps[-1]))
            what = "adapter" if self.config.method.name == "lora" else "model"
            raise TrntuneError(
                f"{error}; python -m postprocess.consolidate {newest} OUT makes the {what} of step {steps[-1]}"
            ) from None

    def _rehearse(
        self, model_dir: Path, tokenizer: Any, data: PreparedData, checkpointer: Checkpointer, progress: Progress
    ) -> None:
        """Try what the end of the run needs."""
        config, run_dir, engine, peers = self.config, self.run_dir, self.engine, checkpointer.peers
        with self._kept(checkpointer):
            beside = rehearse(config, run_dir, engine, peers, tokenizer, model_dir, data.held_out[0])
        fault = check_room(config, run_dir, engine, peers, model_dir, total_steps(config, len(data.train)), beside)
        if fault is not None:
            progress.message(f"warning: {fault}")

    def _record_samples(self, data: PreparedData, before: list[str], after: list[str]) -> None:
        if not self.writes or not before:
            return
        samples = side_by_side(data.held_out[: len(before)], before, after)
        write_jsonl(self.run_dir.samples, samples)
        if self.tracker is not None:
            self.tracker.log_table(samples, "samples.json")

    def _finish(self, result: dict[str, Any]) -> None:
        """Stop the clock, then hand the result to MLflow: the same numbers there as in the run directory."""
        result["wall_seconds"] = self._wall_seconds()
        if self.tracker is not None:
            self.tracker.log_result(self.run_dir, result)
            self.close("KILLED" if result["status"] == "interrupted" else "FINISHED")
            result["mlflow"] = self.tracker.reference()

    def _wall_seconds(self) -> float:
        """Of all attempts, without what was lost between a checkpoint and an end."""
        return self.earlier_seconds + time.time() - psutil.Process().create_time()

    def close(self, status: str) -> None:
        """End the MLflow run, once."""
        if self.tracker is not None:
            self.tracker.close(status)
            sys.stderr.flush()
