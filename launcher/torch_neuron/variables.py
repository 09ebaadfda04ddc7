"""The environment of a process that trains on TorchNeuron, from accelerator.torch_neuron.

TorchNeuron is a beta (SDK 2.33), and most of its variables were read from users' notes on the betas before it, not from
AWS's documentation: each says so where it is made, and is to be looked at again with every version (docs/trainium.md).
"""

from __future__ import annotations

from launcher.config.schema import Config
from launcher.jobs.cluster_variables import project_cache

FALLBACK_CACHE = "/var/tmp/trntune-torch-neuron"
DERIVED = (
    "NEURON_CC_FLAGS",
    "NEURON_LOGICAL_NC_CONFIG",
    "OMP_NUM_THREADS",
    "TORCH_NEURONX_ENABLE_NKI_SDPA",
    "TORCH_NEURONX_NEFF_CACHE_DIR",
)
"""Set from other keys of the configuration: a second value in a list of variables would be one too many."""


def cache_directory(config: Config) -> str:
    """Where compiled programs are kept. They are found by their content, so that all runs share it."""
    settings = config.accelerator.torch_neuron
    if settings is not None and settings.cache_dir is not None:
        return settings.cache_dir.rstrip("/")
    shared = project_cache(config)
    return f"{shared}/torch-neuron" if shared else FALLBACK_CACHE


def torch_neuron_variables(config: Config) -> dict[str, str]:
    """Variables of the processes that train; none where accelerator.torch_neuron is null. None for EFA (FI_*): which
    ones TorchNeuron needs is in no page that was read."""
    settings = config.accelerator.torch_neuron
    if settings is None:
        return {}
    flags = " ".join(settings.compiler_flags)
    return {
        # AWS, training/best-practices.html: 2 is trn2's and trn3's default.
        "NEURON_LOGICAL_NC_CONFIG": str(settings.logical_nc),
        # Betas: kept between runs, safe on a shared file system; without it they go to a directory for temporary files.
        "TORCH_NEURONX_NEFF_CACHE_DIR": cache_directory(config),
        # Betas: passed on to neuronx-cc, which refuses --cache_dir in it (NCC_EARG002).
        **({"NEURON_CC_FLAGS": flags} if flags else {}),
        # Betas: scaled_dot_product_attention by NKI's flash kernels, where they take the shape.
        "TORCH_NEURONX_ENABLE_NKI_SDPA": str(int(settings.nki_attention)),
        # A user's measurement on trn2: half the speed with torchrun's 1.
        "OMP_NUM_THREADS": str(settings.omp_threads),
    }
