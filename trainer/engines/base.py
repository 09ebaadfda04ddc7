"""What every training engine offers. The stage talks to this and knows no other difference between engines."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from launcher.schema import Config
from trainer.throughput import Counts, ModelSize, Stopwatch

Rows = list[Any]  # of trainer.data.prepare.Row


@dataclass(frozen=True)
class ParameterCounts:
    """Distinct logical parameters, tied ones counted once."""

    total: int
    """of the model, without adapters"""
    trainable: int
    trainable_local: int
    """on this rank"""


@dataclass(frozen=True)
class StepReport:
    """One finished optimizer step, the counts summed over all replicas."""

    step: int
    epoch: float
    counts: Counts
    seconds: float
    learning_rate: float
    grad_norm: float | None


class Observer(Protocol):
    """What the engine tells while it trains."""

    def on_step(self, report: StepReport) -> None: ...

    def on_evaluation(self, step: int, loss: float) -> None: ...

    def stop_requested(self) -> bool:
        """Asked on every rank before each optimizer step: one yes stops all ranks after that step."""
        ...


@dataclass(frozen=True)
class FitResult:
    """How training ended."""

    status: str
    """finished, early_stopped or interrupted"""
    steps: int
    best_step: int | None
    """the evaluation whose weights are kept, with early stopping"""


class Engine(Protocol):
    """A training engine: one object a process, made by the engine module's ``create``."""

    rank: int
    replicas: int

    def load(self, model_dir: Path, tokenizer: Any) -> None: ...

    def parameters(self) -> ParameterCounts: ...

    def model_size(self) -> ModelSize: ...

    def evaluate(self, rows: Rows) -> float:
        """Mean negative log-likelihood a trained token over all ``rows``, nats, the same on every rank."""
        ...

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of a run on ``rows`` training rows."""
        ...

    def fit(self, rows: Rows, eval_rows: Rows, observer: Observer, work_dir: Path, stopwatch: Stopwatch) -> FitResult:
        """Train until the steps are done, evaluation stops improving, or a stop is asked for. Evaluations in between
        are counted in the stopwatch's part "eval"."""
        ...

    def answer(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of the prompts, without the prompt, ended by EOS or by ``max_new_tokens``."""
        ...

    def save(self, directory: Path) -> None:
        """Write the adapter (LoRA) or the whole model (full) into ``directory``. Rank 0 only."""
        ...

    def peak_memory(self) -> tuple[int, int | None]:
        """Peak host memory summed over the processes, peak device memory of the fullest one or None; bytes."""
        ...

    def close(self) -> None: ...


def create_engine(config: Config) -> Engine:
    """The engine that the accelerator names: module trainer.engines.<name>_engine."""
    module = importlib.import_module(f"trainer.engines.{config.accelerator.engine}_engine")
    return cast(Callable[[Config], Engine], module.create)(config)
