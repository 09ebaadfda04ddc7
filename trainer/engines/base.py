"""What every training engine offers. The stage talks to this and knows no other difference between engines."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.run_dir.result import RunStatus
from trainer.checkpoints.peers import Peers
from trainer.checkpoints.state import Checkpoints
from trainer.metrics.throughput import ModelSize, StepReport, Stopwatch
from trainer.signals import Stop

if TYPE_CHECKING:
    from trainer.models.size import ParameterCounts

Rows = Sequence[Any]  # of trainer.data.packed.Row


class NonFiniteLossError(TrntuneError):
    """A step gave a loss or a gradient that is no number; the weights are those of the step before."""


def non_finite(step: int, what: str, lines: Sequence[int], updated: bool = False) -> NonFiniteLossError:
    """The error of a step whose loss or gradient is no number: ``what`` that is, the ``lines`` of the data set that the
    step has, and whether the weights were ``updated`` by it before that could be known."""
    shown = ", ".join(map(str, lines[:8])) + (", ..." if len(lines) > 8 else "")
    lost = "what was trained is lost since the last checkpoint" if updated else "the weights were not updated"
    return NonFiniteLossError(
        f"step {step}: {what}, so {lost}; lower training.learning_rate or look at the rows of this step (lines {shown} "
        "of the data set)"
    )


class TrainingCallback(Protocol):
    """What the engine tells while it trains, on every rank."""

    def on_step(self, report: StepReport) -> None:
        """A step is done. Called after each of them, with what all replicas did together."""
        ...

    def on_evaluation(self, step: int, loss: float) -> None:
        """The held-out loss after ``step``: what ``Engine.evaluate`` returns."""
        ...

    def stop_requested(self) -> Stop:
        """Asked on every rank before each optimizer step: one rank's wish stops all ranks after that step."""
        ...

    def lines(self, rows: list[int]) -> list[int]:
        """Lines of the data set's file that training rows hold, for messages."""
        ...


@dataclass(frozen=True)
class FitResult:
    """How training ended, the same on every rank."""

    status: RunStatus
    """FINISHED, EARLY_STOPPED, INTERRUPTED, or SUSPENDED: its last state is with the checkpoints, saved or being so"""
    steps: int
    best_step: int | None
    """the evaluation whose weights are kept, with early stopping"""


class Engine(Protocol):
    """A training engine: one object a process, made by the engine module's ``create(config)``.

    That joins the process group, on every rank, and raises TrntuneError for what this machine or this engine can't do.
    All ranks call the members below, in the same order, but where one says that it is called by some of them.
    """

    rank: int
    """of this process in the run; rank 0 writes and reports"""
    replicas: int
    """copies of the model that share a step's rows: the processes, by the ranks that hold one copy together"""
    sharded: bool
    """the trained weights lie over the ranks: each of them calls ``save``, and stage consolidate makes them whole"""
    gathers: bool
    """the weights lie over the ranks, and ``save`` puts them together: each of them calls it, and rank 0 writes them
    whole"""
    notes: Sequence[str]
    """what ``load`` has put right in the model, to be told"""
    can_answer: bool
    """``answer`` can be called; where it can't, stage generate answers with the merged model"""

    def load(self, model_dir: Path, tokenizer: Any) -> None:
        """Put the model of ``model_dir`` on the device, in the dtypes of training.precision, with what method and lora
        say is trained on it; ``tokenizer`` is the run's. Called once, before all that follows.

        Raises TrntuneError for a model that can't be loaded or trained so, such as one with other parameters than the
        configuration says."""
        ...

    def parameters(self) -> ParameterCounts:
        """Of the whole model, and of this rank's part of it. No exchange between ranks."""
        ...

    def model_size(self) -> ModelSize:
        """What the FLOPs of a step depend on, of the whole model, the same on every rank. No exchange between ranks."""
        ...

    def evaluate(self, rows: Rows) -> float:
        """Mean negative log-likelihood a trained token over all ``rows``, nats, the same on every rank.

        ``rows`` are all held-out rows, at least one, on every rank; each replica takes its share. Raises TrntuneError
        on every rank where the mean is not finite."""
        ...

    def peers(self) -> Peers:
        """The ranks of this run, for what they write together beside the training: usable from another thread than
        the training's. Called once, by all of them."""
        ...

    def fit(
        self, rows: Rows, eval_rows: Rows, observer: TrainingCallback, checkpoints: Checkpoints, stopwatch: Stopwatch
    ) -> FitResult:
        """Train from the beginning, or from where ``checkpoints.resumed`` stands, until the steps are done, evaluation
        stops improving, or a stop is asked for. Called once.

        ``rows`` are all training rows, whole global batches, on every rank; launcher.plan.steps says how many steps
        they make, and trainer.data.order which of them a step has. Evaluations and saves in between are counted in the
        stopwatch's parts "eval" and "save". With early stopping the best weights are those that are left. Raises
        NonFiniteLossError on every rank for a step whose loss or gradient is no number, before its update where that
        can be known by then; the last good state is then with the checkpoints."""
        ...

    def checksums(self) -> dict[str, int]:
        """Of the trained weights that lie on this rank: trainer.models.unchanged says what for. No exchange between
        ranks."""
        ...

    def answer(self, prompts: list[list[int]], max_new_tokens: int, ends: Sequence[int]) -> list[list[int]]:
        """Greedy continuations of the prompts, without the prompt, ended by one of the tokens ``ends``, which is left
        out, or by ``max_new_tokens``. Token ids, one list a prompt. Rank 0 only, and where ``can_answer``; raises
        TrntuneError elsewhere, and for a family whose answers can't be trusted."""
        ...

    def save(self, directory: Path) -> None:
        """Write the adapter (LoRA) or the whole model (full) into ``directory``. Rank 0 only; all ranks if
        sharded, or if it gathers.

        Tensors are in the dtype that they are trained in. Raises whatever the libraries and the disk do; an engine that
        looks for numbers that are not finite raises NonFiniteLossError before it writes anything."""
        ...

    def rehearse(self, directory: Path) -> None:
        """Write all that ``save``, and a checkpoint, write beside the weights: what can't be saved fails before
        training. Called by whom ``save`` is, after ``load``; raises whatever the libraries do."""
        ...

    def saved_bytes(self) -> tuple[int, int]:
        """Bytes that this rank writes: of what is trained at the end, and of one checkpoint. No exchange between
        ranks."""
        ...

    def peak_memory(self) -> tuple[int, int | None]:
        """Peak host memory summed over the processes, peak device memory of the fullest one or None; bytes, the same on
        every rank."""
        ...

    def close(self) -> None:
        """Leave the process group. Called last, also after a failure."""
        ...


def create_engine(config: Config) -> Engine:
    """The engine that the accelerator names: module trainer.engines.<name>.engine."""
    module = importlib.import_module(f"trainer.engines.{config.accelerator.engine}.engine")
    return cast(Callable[[Config], Engine], module.create)(config)
