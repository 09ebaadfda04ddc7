"""The directory of compiled graphs, as neuronx-cc's wrapper lays it out.

    <directory>/neuronxcc-2.21.33363.0+82129205/MODULE_3024185903572207584+e30acd3a/
        model.hlo_module.pb    the graph, written when it was traced (model.hlo.pb in older versions)
        compile_flags.json     its compiler flags, whose hash ends the directory's name
        model.neff             the compiled graph
        model.done             empty; written last
        model.log              instead of model.done, where the compiler failed

Seen in AWS's documentation ("Neuron Persistent Cache", "PyTorch NeuronX neuron_parallel_compile CLI", the profiling
tutorial of NxD Training) and in the public cache of optimum-neuron, whose newest files have this compiler's version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

GRAPHS = ("model.hlo_module.pb", "model.hlo.pb")


@dataclass(frozen=True)
class Module:
    """One graph in the cache."""

    path: Path

    @property
    def name(self) -> str:
        """Compiler version, hash of the graph and hash of the flags: what identifies it."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def compiler(self) -> str:
        """Version of neuronx-cc: 2.21.33363.0+82129205."""
        return self.path.parent.name.removeprefix("neuronxcc-")

    @property
    def compiled(self) -> bool:
        """True when the compiler has finished it."""
        return (self.path / "model.neff").is_file() and (self.path / "model.done").is_file()

    @property
    def failed(self) -> bool:
        """True when the compiler gave it up."""
        return (self.path / "model.log").is_file() and not self.compiled

    @property
    def interval(self) -> tuple[float, float] | None:
        """When its compilation began and ended, by the clock of the file system; None while it is not compiled."""
        graph = next((self.path / name for name in GRAPHS if (self.path / name).is_file()), None)
        if graph is None or not self.compiled:
            return None
        return graph.stat().st_mtime, (self.path / "model.done").stat().st_mtime


def modules(directory: Path) -> Iterator[Module]:
    """Every graph below ``directory``, compiled or not, in the order of their names."""
    return (Module(path) for path in sorted(directory.glob("neuronxcc-*/MODULE_*")) if path.is_dir())


def compiled(directory: Path) -> dict[str, Module]:
    """The graphs that need no compiling any more, by name."""
    return {module.name: module for module in modules(directory) if module.compiled}


def busy_seconds(found: Iterable[Module], since: float) -> float:
    """Seconds after ``since`` (of the file system's clock) in which at least one of these graphs was being compiled."""
    spans = sorted(span for span in (module.interval for module in found) if span is not None)
    total, end = 0.0, since
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
