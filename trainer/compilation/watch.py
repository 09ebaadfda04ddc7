"""What is compiled while training: of the neuron engine nothing may be left to compile after stage compile."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.jobs.variables import COMPILE
from launcher.neuron.graphs import differences, shapes
from launcher.neuron.variables import cache_root, graph_directory
from launcher.run_dir.layout import RunDir
from trainer.compilation import record
from trainer.compilation.cache import Module, busy_seconds, compiled
from trainer.compilation.programs import Say, watch_programs
from trainer.compilation.trial import tracing
from trainer.engines.base import TrainingCallback
from trainer.metrics.throughput import StepReport, Stopwatch
from trainer.signals import Stop


class Compilations(Protocol):
    """What is compiled while a run trains, told to the run."""

    def after_step(self) -> None:
        """Raise TrntuneError, or warn, where the step compiled what it shouldn't have."""

    def after_evaluation(self) -> None:
        """The same for an evaluation."""

    def settle(self, stopwatch: Stopwatch, part: str) -> None:
        """Count what was compiled since the last call as compiling, not as ``part``, which waited for it."""

    def result(self) -> dict[str, Any]:
        """The numbers of docs/measurement.md."""


class Graphs:
    """The graphs of one training run, on rank 0: those that were there when it started, and those that came since."""

    def __init__(self, config: Config, precompiled: dict[str, Any] | None, say: Say) -> None:
        """``precompiled``: the result of stage compile."""
        assert config.accelerator.neuron is not None
        self.directory = graph_directory(config)
        self.stops = config.accelerator.neuron.on_new_graph == "stop"
        self.precompiled, self.say = precompiled, say
        self.before = compiled(self.directory)
        self.began = _now(self.directory)
        self.settled = 0.0
        self.told: set[str] = set()
        if precompiled is None:
            self._tell_of_no_stage(config)

    def new(self) -> dict[str, Module]:
        """Graphs that had to be compiled since training began."""
        return {name: module for name, module in compiled(self.directory).items() if name not in self.before}

    def after_step(self) -> None:
        """See Compilations."""
        self.check()

    def after_evaluation(self) -> None:
        """See Compilations."""
        self.check()

    def check(self) -> None:
        """Raise TrntuneError, or warn, when there are new graphs although stage compile has run."""
        new = [name for name in self.new() if name not in self.told]
        if not new or self.precompiled is None:
            return
        self.told.update(new)
        text = (
            f"{len(new)} graph{'s were' if len(new) > 1 else ' was'} compiled in training that stage compile had not "
            f"seen, with the same settings: {new[0]}"
        )
        if self.stops:
            raise TrntuneError(
                f"{text}; started again, the run finds it in the cache; accelerator.neuron.on_new_graph=warn goes on"
            )
        self.say(f"warning: {text}")

    def settle(self, stopwatch: Stopwatch, part: str) -> None:
        """Count what was compiled since the last call as compiling, not as ``part``, which waited for it."""
        seconds = busy_seconds(self.new().values(), self.began)
        stopwatch.move(part, "compile", seconds - self.settled)
        self.settled = seconds

    def result(self) -> dict[str, Any]:
        """The numbers of docs/measurement.md."""
        new, requested = self.new(), graphs_requested()
        return {
            "graphs_available": len(self.before),
            "graphs_compiled": len(new),
            "graph_cache_hits": None if requested is None else max(0, requested - len(new)),
            "precompile_seconds": None if self.precompiled is None else self.precompiled["seconds"],
        }

    def _tell_of_no_stage(self, config: Config) -> None:
        text = "note: without stage compile, each graph that is not in the cache is compiled while the devices wait"
        changed = record.nearest(config, Path(cache_root(config)))
        near = f"; the nearest that is there was compiled with other settings: {', '.join(changed)}" if changed else ""
        if not self.before:
            self.say(f"{text}; there is none for this configuration{near}")


@dataclass(frozen=True)
class Watched:
    """An observer of the training that looks for what was compiled after each step and each evaluation."""

    observer: TrainingCallback
    compilations: Compilations

    def on_step(self, report: StepReport) -> None:
        self.observer.on_step(report)
        self.compilations.after_step()

    def on_evaluation(self, step: int, loss: float) -> None:
        self.observer.on_evaluation(step, loss)
        self.compilations.after_evaluation()

    def stop_requested(self) -> Stop:
        return self.observer.stop_requested()

    def lines(self, rows: list[int]) -> list[int]:
        return self.observer.lines(rows)


def check_same_graphs(config: Config, run_dir: RunDir) -> None:
    """Raise TrntuneError where stage compile has run with other settings, before anything is loaded."""
    precompiled = run_dir.stage_result(COMPILE)
    if precompiled is not None and (changed := differences(precompiled["shapes"], shapes(config))):
        raise TrntuneError(
            f"stage compile has compiled for other graphs: {', '.join(changed)}; run it again: stages=[compile,train]"
        )


def watch(config: Config, run_dir: RunDir, rank: int, stopwatch: Stopwatch, say: Say) -> Compilations | None:
    """What this rank compiles; None where it compiles nothing, and in a trial run. Of the neuron engine's graphs, which
    all ranks share, rank 0 alone keeps watch."""
    if tracing():
        return None
    if config.accelerator.neuron is None:
        return watch_programs(config, stopwatch, say)
    return Graphs(config, run_dir.stage_result(COMPILE), say) if rank == 0 else None


def graphs_requested() -> int | None:
    """Graphs that torch_xla has asked the compiler for in this process: each was in the cache on disk, or was compiled.
    None where torch_xla isn't in use."""
    if "torch_xla" not in sys.modules:
        return None
    metrics = importlib.import_module("torch_xla.debug.metrics")
    return int(metrics.counter_value("UncachedCompile") or 0)  # None before the first


def _now(directory: Path) -> float:
    """The time by the clock of the file system that holds the cache; this machine's where it can't be written."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
