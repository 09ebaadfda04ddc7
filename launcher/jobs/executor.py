"""What starts the jobs of runs: an executor is a module with a YAML file in conf/cluster, found here by its name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from launcher.config.schema import ClusterConfig

if TYPE_CHECKING:
    from launcher.config.compose import Composition


class Executor(Protocol):
    """What the module of an executor offers."""

    def execute(self, composition: Composition, overrides: list[str]) -> int:
        """Run all runs of a checked composition, or submit them; ``overrides`` are those of the command line. Returns
        the exit code. Raises TrntuneError where nothing could be started or submitted."""
        ...


@dataclass(frozen=True)
class Entry:
    """An executor in the registry. Its module is named, not imported: a run on this machine needs none of Slurm's."""

    module: str
    submits: bool
    """it returns as soon as all is submitted: the jobs run elsewhere, and later"""


EXECUTORS = {
    "local": Entry("launcher.executors.local", submits=False),
    "slurm": Entry("launcher.executors.slurm.submit", submits=True),
    "hyperpod": Entry("launcher.executors.hyperpod", submits=True),
}
"""By cluster.name."""


def executor_of(cluster: ClusterConfig) -> Executor:
    """The executor that ``cluster`` names; the schema allows no others."""
    return cast(Executor, importlib.import_module(EXECUTORS[cluster.name].module))


def is_submitted(cluster: ClusterConfig) -> bool:
    """True where runs are submitted: not this machine runs them."""
    entry = EXECUTORS.get(cluster.name)  # any other name is refused, but after questions such as this one
    return entry is None or entry.submits
