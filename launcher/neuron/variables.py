"""The environment of a process that compiles for Neuron or runs on it, from accelerator.neuron.

The names are those of AWS's Neuron documentation ("Neuron Persistent Cache", "PyTorch NeuronX Environment Variables",
"Logical NeuronCore configuration", "How to prepare trn1.32xlarge for multi-node execution"), the values those of
optimum-neuron's own launch examples. ``MALLOC_ARENA_MAX`` bounds glibc's arenas, without which a host runs out of
memory while a checkpoint is written (optimum/neuron/utils/torch_xla_and_neuronx_initialization.py sets 64 too, but from
inside the process, when glibc has long read it).
"""

from __future__ import annotations

import re
from pathlib import Path

from launcher.config.schema import Config, NeuronConfig, world_size
from launcher.jobs.cluster_variables import project_cache
from launcher.neuron.graphs import directory_name

MALLOC_ARENAS = 64
FALLBACK_CACHE = "/var/tmp/trntune-neuron"
# What optimum/neuron/utils/cache_utils.py:get_neuron_cache_path reads of --cache_dir; the rest would be cut off.
CACHE_PATH = re.compile(r"/[A-Za-z0-9_/-]+")
EFA = {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "FI_EFA_FORK_SAFE": "1"}

# Set from other keys of the configuration: a second value in a list of variables would be one too many.
DERIVED = (
    "NEURON_CC_FLAGS",
    "NEURON_COMPILE_CACHE_URL",
    "NEURON_FUSE_SOFTMAX",
    "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS",
    "NEURON_LOGICAL_NC_CONFIG",
    "MALLOC_ARENA_MAX",
    *EFA,
)


def cache_root(config: Config) -> str:
    """The directory that holds the graphs of all configurations."""
    neuron = _neuron(config)
    if neuron.cache_dir is not None:
        return neuron.cache_dir.rstrip("/")
    candidate = f"{project_cache(config) or ''}/neuron"
    return candidate if CACHE_PATH.fullmatch(candidate) and candidate != "/neuron" else FALLBACK_CACHE


def graph_directory(config: Config) -> Path:
    """Where the graphs of this configuration are: neuronx-cc adds ``neuronxcc-VERSION/MODULE_*`` below it."""
    return Path(cache_root(config)) / directory_name(config)


def neuron_variables(config: Config) -> dict[str, str]:
    """Variables of the processes that compile and train; none where accelerator.neuron is null."""
    if config.accelerator.neuron is None:
        return {}
    neuron, cache = config.accelerator.neuron, str(graph_directory(config))
    return {
        # --cache_dir is what optimum-neuron reads, and wins over the URL, which some of AWS's tools read.
        "NEURON_CC_FLAGS": " ".join([*neuron.compiler_flags, f"--cache_dir={cache}"]),
        "NEURON_COMPILE_CACHE_URL": cache,
        "NEURON_FUSE_SOFTMAX": str(int(neuron.fuse_softmax)),
        "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": str(neuron.inflight_requests),
        "MALLOC_ARENA_MAX": str(MALLOC_ARENAS),
        **({} if neuron.logical_nc is None else {"NEURON_LOGICAL_NC_CONFIG": str(neuron.logical_nc)}),
        **(EFA if neuron.efa and world_size(config) > (config.accelerator.devices_per_instance or 1) else {}),
    }


def _neuron(config: Config) -> NeuronConfig:
    assert config.accelerator.neuron is not None
    return config.accelerator.neuron
