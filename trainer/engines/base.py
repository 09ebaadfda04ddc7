"""What every training engine offers. The stage talks to this and knows no other difference between engines."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from launcher.architecture.adapters import Modules, first_layer, trained
from launcher.config.schema import Config
from launcher.errors import TrntuneError
from trainer.checkpoints.peers import Peers
from trainer.metrics.throughput import Counts, ModelSize, Stopwatch
from trainer.signals import Stop

if TYPE_CHECKING:
    import torch

Rows = Sequence[Any]  # of trainer.data.packed.Row


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
    rows: list[int]
    """indices of the training rows, all replicas together, in order"""


class NonFiniteLossError(TrntuneError):
    """A step gave a loss or a gradient that is no number; the weights are those of the step before."""


class TrainingCallback(Protocol):
    """What the engine tells while it trains."""

    def on_step(self, report: StepReport) -> None: ...

    def on_evaluation(self, step: int, loss: float) -> None: ...

    def stop_requested(self) -> Stop:
        """Asked on every rank before each optimizer step: one rank's wish stops all ranks after that step."""
        ...

    def lines(self, rows: list[int]) -> list[int]:
        """Lines of the data set's file that training rows hold, for messages."""
        ...


@dataclass(frozen=True)
class EngineState:
    """What one rank needs to go on after a step, copied to host memory: training may change its own at once."""

    step: int
    epoch: float
    tensors: dict[str, dict[str, torch.Tensor]]
    """file name -> tensors"""
    documents: dict[str, Any]
    """file name -> JSON value"""


class RestoredState(Protocol):
    """A checkpoint that training goes on from."""

    @property
    def step(self) -> int: ...

    def has(self, name: str) -> bool: ...

    def tensors(self, name: str) -> dict[str, torch.Tensor]: ...

    def document(self, name: str) -> Any: ...


class Checkpoints(Protocol):
    """What the engine asks and tells about checkpoints. All ranks make the same calls in the same order."""

    @property
    def resumed(self) -> RestoredState | None: ...

    saved_step: int
    """newest step that is saved or being saved"""

    def due(self, step: int, last: bool) -> bool: ...

    def stalled(self, seconds: float) -> None: ...

    def save(self, state: EngineState) -> None: ...

    def poll(self) -> None:
        """Report a save that has ended by now, without waiting."""
        ...

    def wait(self) -> Any:
        """Wait for the save under way, if any: after it ``saved_step`` is the same on every rank."""
        ...


@dataclass(frozen=True)
class FitResult:
    """How training ended."""

    status: str
    """finished, early_stopped, interrupted, or suspended: its last state is with the checkpoints, saved or being so"""
    steps: int
    best_step: int | None
    """the evaluation whose weights are kept, with early stopping"""


class Engine(Protocol):
    """A training engine: one object a process, made by the engine module's ``create``."""

    rank: int
    replicas: int
    sharded: bool
    """the trained weights lie over the ranks: each of them calls ``save``, and stage consolidate makes them whole"""
    notes: Sequence[str]
    """what ``load`` has put right in the model, to be told"""
    can_answer: bool
    """``answer`` can be called; where it can't, stage generate answers with the merged model"""

    def load(self, model_dir: Path, tokenizer: Any) -> None: ...

    def parameters(self) -> ParameterCounts: ...

    def model_size(self) -> ModelSize: ...

    def evaluate(self, rows: Rows) -> float:
        """Mean negative log-likelihood a trained token over all ``rows``, nats, the same on every rank."""
        ...

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of a run on ``rows`` training rows."""
        ...

    def peers(self) -> Peers:
        """The ranks of this run, for what they write together beside the training. Called once, by all of them."""
        ...

    def fit(
        self, rows: Rows, eval_rows: Rows, observer: TrainingCallback, checkpoints: Checkpoints, stopwatch: Stopwatch
    ) -> FitResult:
        """Train from the beginning, or from where ``checkpoints.resumed`` stands, until the steps are done, evaluation
        stops improving, or a stop is asked for. Evaluations and saves in between are counted in the stopwatch's parts
        "eval" and "save"."""
        ...

    def checksums(self) -> dict[str, int]:
        """Of the trained weights that lie on this rank: trainer.models.unchanged says what for."""
        ...

    def answer(self, prompts: list[list[int]], max_new_tokens: int, ends: Sequence[int]) -> list[list[int]]:
        """Greedy continuations of the prompts, without the prompt, ended by one of the tokens ``ends``, which is left
        out, or by ``max_new_tokens``."""
        ...

    def save(self, directory: Path) -> None:
        """Write the adapter (LoRA) or the whole model (full) into ``directory``. Rank 0 only; all ranks if sharded."""
        ...

    def rehearse(self, directory: Path) -> None:
        """Write all that ``save``, and a checkpoint, write beside the weights: what can't be saved fails before
        training. Called by whom ``save`` is, after ``load``; raises whatever the libraries do."""
        ...

    def saved_bytes(self) -> tuple[int, int]:
        """Bytes that this rank writes: of what is trained at the end, and of one checkpoint."""
        ...

    def peak_memory(self) -> tuple[int, int | None]:
        """Peak host memory summed over the processes, peak device memory of the fullest one or None; bytes."""
        ...

    def close(self) -> None: ...


def model_size(base: Any, counts: ParameterCounts, config: Config, modules: Modules) -> ModelSize:
    """Parameters of transformers' model ``base`` that take part in a token's matrix products, and the width of
    attention. ``modules``: its names before peft changed it."""
    from trainer.families.experts import idle_parameters, looked_up  # imports torch
    from trainer.families.pairs import attention_width

    idle = idle_parameters(base, base.config.get_text_config())
    size = ModelSize(
        matmul_params=counts.total - looked_up(base) - idle,
        adapter_params=0,
        attention_width=attention_width(base.config),
    )
    return size if config.method.name == "full" else _with_adapter(size, base, counts, config, modules, idle)


def _with_adapter(
    size: ModelSize, base: Any, counts: ParameterCounts, config: Config, modules: Modules, idle: int
) -> ModelSize:
    """What an adapter adds to the products, and what its backward pass doesn't reach. ``idle``: of all layers."""
    from trainer.models.adapt import is_added, is_linear, plain
    from trainer.models.adapt import size as size_of

    found = trained(config.lora, modules)
    first = first_layer(config.lora, found, modules)
    named = list(base.named_parameters())
    # Neuron's base is one without its adapter, beside which nothing else is trained there.
    matrices = sum(p.numel() for name, p in named if "lora_" in name) or counts.trainable
    saved = [module for name in found.saved if is_linear(module := plain(base.get_submodule(name)))]
    layers = [(modules.layer_of(name), size_of(p)) for name, p in named if not is_added(name)]
    below = sum(numel for layer, numel in layers if layer is not None and layer < first)
    return replace(
        size,
        adapter_params=matrices,
        saved_params=sum(module.weight.numel() for module in saved),
        forward_only_params=below - idle * first // max(1, modules.count),
        forward_only_width=size.attention_width * first // max(1, modules.count),
    )


def create_engine(config: Config) -> Engine:
    """The engine that the accelerator names: module trainer.engines.<name>_engine."""
    module = importlib.import_module(f"trainer.engines.{config.accelerator.engine}.engine")
    return cast(Callable[[Config], Engine], module.create)(config)
