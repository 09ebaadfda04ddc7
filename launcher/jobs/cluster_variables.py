"""Environment variables that conf/cluster gives to the processes of every stage."""

from __future__ import annotations

import os
from collections.abc import Iterable

from launcher.config.schema import Config


def pairs(settings: Iterable[str]) -> dict[str, str]:
    """``NAME=value`` lines as a mapping; the last one of a name counts."""
    return {name: value for name, _, value in (line.partition("=") for line in settings)}


def cluster_variables(config: Config) -> dict[str, str]:
    """What all stages get: the shared caches, then what the user sets."""
    shared = config.cluster.cache_dir
    caches = {} if shared is None else {"TRNTUNE_CACHE": f"{shared}/cache", "HF_HOME": f"{shared}/huggingface"}
    return {**caches, **pairs(config.cluster.environment)}


def project_cache(config: Config) -> str | None:
    """TRNTUNE_CACHE as the stages will have it: the cluster's, else this shell's; None where neither says one."""
    return cluster_variables(config).get("TRNTUNE_CACHE") or os.environ.get("TRNTUNE_CACHE") or None
