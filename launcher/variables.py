"""Environment variables that the configuration gives to the processes of a stage, here and on Slurm alike."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.neuron.variables import neuron_variables
from launcher.schema import Config

COMPILE = "compile"
ON_ACCELERATOR = (COMPILE, "train")
"""Stages that need the accelerators' nodes."""

TORCHRUN_OPTIONS = "TRNTUNE_TORCHRUN_OPTIONS"
"""Tells stage compile how the processes that it starts meet those of other nodes; without it they are all here."""


def pairs(settings: Iterable[str]) -> dict[str, str]:
    """``NAME=value`` lines as a mapping; the last one of a name counts."""
    return {name: value for name, _, value in (line.partition("=") for line in settings)}


def variables(stage: str, config: Config) -> dict[str, str]:
    """What is set for ``stage``: the cluster's for all of them, the accelerator's for those that run on it."""
    cluster = pairs(config.cluster.environment)
    if stage not in ON_ACCELERATOR:
        return cluster
    return {**cluster, **neuron_variables(config), **pairs(config.accelerator.environment)}
