"""The Neuron runtime of this machine: it comes with the image, not with the Python environment, and moves with the SDK.

From 2.34 (SDK 2.32) on it has no NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS, by which training on PyTorch/XLA runs
ahead, and no longer corrupts data in silence where programs reuse their participants in another order [AWS: release
notes of the runtime, aws-neuron-sdk, runtime.rst].
"""

from __future__ import annotations

import functools
import re
import subprocess

from launcher.config.schema import Config, on_torch_neuron

PACKAGE = "aws-neuronx-runtime-lib"
CHANGED = (2, 34)


def runtime_fault(config: Config) -> str | None:
    """Why this machine's runtime can't be trained with, in one line; None where it can, or where there is none."""
    accelerator = config.accelerator
    if accelerator.device != "neuron" or (version := installed_runtime()) is None:
        return None
    number = ".".join(map(str, version))
    if on_torch_neuron(config):
        if version >= CHANGED:
            return None
        return (
            f"training on TorchNeuron needs {PACKAGE}>=2.34, and this machine has {number}, which can corrupt data in "
            "silence; take an image of Neuron SDK 2.33 or newer"
        )
    if version < CHANGED or accelerator.neuron is None or not accelerator.neuron.inflight_requests:
        return None
    return (
        f"accelerator.neuron.inflight_requests={accelerator.neuron.inflight_requests}: this machine's {PACKAGE} "
        f"{number} is of an SDK without training by PyTorch/XLA and runs no graphs ahead; take an image of Neuron SDK "
        "2.28, or write accelerator.neuron.inflight_requests=0"
    )


@functools.cache
def installed_runtime() -> tuple[int, int] | None:
    """Major and minor version of the runtime, as this machine's package manager (Ubuntu's) knows it."""
    command = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.fullmatch(r"installed (?:\d+:)?(\d+)\.(\d+)\b.*", done.stdout.strip())
    return None if found is None else (int(found[1]), int(found[2]))
