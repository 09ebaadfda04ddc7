"""What torch.compile compiles while a model is trained, and what a device leaves to the host: nothing of both is wanted
once training is under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from launcher.config.schema import Config, compiles_layers, on_torch_neuron
from launcher.errors import TrntuneError
from trainer.device import host_operators
from trainer.metrics.throughput import Stopwatch

Say = Callable[[str], None]
FIRST_EVALUATIONS = 1


@dataclass
class Programs:
    """The compilations of one process, from ``watch_programs`` on."""

    config: Config
    stopwatch: Stopwatch
    say: Say
    late: int = 0
    """compilations by steps after the first ``tracking.skip_steps``, and by evaluations after the first"""
    compilations: int = 0
    seconds: float = 0.0
    _seen: int = 0
    _steps: int = 0
    _evaluations: int = 0
    _began: float = 0.0
    _told: set[str] = field(default_factory=set)

    def after_step(self) -> None:
        """Raise TrntuneError, or warn, where the step just made compiled although it was none of the first, or where
        the host computed in the device's place."""
        self._steps += 1
        if self._steps == 1 and compiles_layers(self.config) and not self.compilations:
            self.say("warning: training.compile=layers: torch.compile has compiled nothing, and says nothing about it")
        warm = self._steps > max(1, self.config.tracking.skip_steps)
        self._count(late=warm)
        if warm:
            self._look_at_host()

    def after_evaluation(self) -> None:
        """The same for an evaluation: the first compiles its own forward pass."""
        self._evaluations += 1
        self._count(late=self._evaluations > FIRST_EVALUATIONS)

    def settle(self, stopwatch: Stopwatch, part: str) -> None:
        """Compiling was counted as such when it ended."""

    def result(self) -> dict[str, Any]:
        """The numbers of docs/measurement.md."""
        found: dict[str, Any] = {}
        if compiles_layers(self.config):
            found = {"compilations": self.compilations, "late_compilations": self.late, "graph_breaks": graph_breaks()}
        operators = host_operators(self.config.accelerator.device)
        return found if operators is None else {**found, "host_operators": len(operators)}

    def began(self, _: Any = None) -> None:
        """Called by torch when it begins to compile; what it compiles within that is part of it."""
        self._began = time.perf_counter()

    def ended(self, _: Any = None) -> None:
        """Called by torch when it has compiled, in the thread that waits for it or while that one waits."""
        seconds = time.perf_counter() - self._began
        self.compilations, self.seconds = self.compilations + 1, self.seconds + seconds
        self.stopwatch.last_as("compile", seconds)

    def _count(self, late: bool) -> None:
        new, self._seen = self.compilations - self._seen, self.compilations
        if not new or not late:
            return
        first = not self.late
        self.late += new
        times = f"{new} time{'s' if new > 1 else ''}"
        text = f"step {self._steps} of this start compiled {times} after warm-up{_reason()}"
        self._stop_or("on_new_graph", text)
        if first:
            self.say(f"warning: {text}; {LATE} counts them")

    def _look_at_host(self) -> None:
        new = [name for name in host_operators(self.config.accelerator.device) or () if name not in self._told]
        if not new:
            return
        self._told.update(new)
        text = f"the host computes what the device has no kernel for: {', '.join(new[:4])}"
        self._stop_or("on_host_operator", text)
        self.say(f"warning: {text}")

    def _stop_or(self, key: str, text: str) -> None:
        """Raise TrntuneError where that setting of TorchNeuron is stop; other devices go on."""
        settings = self.config.accelerator.torch_neuron
        if settings is not None and getattr(settings, key) == "stop":
            raise TrntuneError(f"{text}; accelerator.torch_neuron.{key}=warn goes on")


LATE = "late_compilations in stages/train.json"


def watch_programs(config: Config, stopwatch: Stopwatch, say: Say) -> Programs | None:
    """What this process compiles from now on; None where it compiles nothing and has no device that could leave
    anything to the host."""
    if not (compiles_layers(config) or on_torch_neuron(config)):
        return None
    programs = Programs(config, stopwatch, say)
    if compiles_layers(config):
        from torch._dynamo.callback import on_compile_end, on_compile_start

        on_compile_start(programs.began)
        on_compile_end(programs.ended)
    return programs


def graph_breaks() -> int:
    """Places, until now, where torch.compile had to leave a layer's graph."""
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())


def _reason() -> str:
    """Why torch compiled again, in its own words, or nothing."""
    from torch._dynamo.utils import get_compilation_metrics

    for metrics in reversed(get_compilation_metrics()):
        if reason := getattr(metrics, "recompile_reason", None):
            return f" ({' '.join(str(reason).split())[:300]})"
    return ""
