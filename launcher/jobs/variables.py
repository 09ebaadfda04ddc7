"""Environment variables that the configuration gives to the processes of a stage, here and on Slurm alike."""

from __future__ import annotations

import os
from collections.abc import Mapping

from launcher.config.schema import Config
from launcher.jobs.cluster_variables import cluster_variables, pairs
from launcher.neuron.variables import neuron_variables
from launcher.torch_neuron.variables import torch_neuron_variables

COMPILE = "compile"
ON_ACCELERATOR = (COMPILE, "train")
"""Stages that need the accelerators' nodes."""

TORCHRUN_OPTIONS = "TRNTUNE_TORCHRUN_OPTIONS"
"""Tells stage compile how the processes that it starts meet those of other nodes; without it they are all here."""

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that say how OpenMP's threads wait for each other."""


def waiting(config: Config, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """On a CPU: threads that have waited in vain for some 0.1 ms leave it to others, unless the user has chosen.

    As fast as libgomp's own choice, which waits thirty times as long, on a quiet machine, and faster beside other load;
    without any spinning (OMP_WAIT_POLICY=PASSIVE) a quiet machine is slower: figures in docs/performance.md.
    """
    chosen = config.accelerator.device != "cpu" or any(name in environment for name in WAITING)
    return {} if chosen else {"GOMP_SPINCOUNT": "10000"}


def variables(stage: str, config: Config) -> dict[str, str]:
    """What is set for ``stage``: the cluster's for all of them, the accelerator's for those that run on it."""
    cluster = {**waiting(config), **cluster_variables(config)}
    if stage not in ON_ACCELERATOR:
        return cluster
    own = {**neuron_variables(config), **torch_neuron_variables(config)}
    return {**cluster, **own, **pairs(config.accelerator.environment)}
