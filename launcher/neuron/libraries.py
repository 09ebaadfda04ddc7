"""The libraries that training on Neuron needs: optimum-neuron pins older ones than the newest that this project runs
with, so it has an environment of its own (docs/trainium.md). Read from packages' metadata: nothing is imported."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata

from launcher.config.schema import ClusterConfig, Config, on_torch_neuron
from launcher.errors import UsageError
from launcher.jobs.executor import is_submitted
from launcher.jobs.variables import ON_ACCELERATOR
from launcher.neuron.runtime import runtime_fault
from launcher.run_dir.provenance import installed
from launcher.torch_neuron.libraries import TORCH_NEURONX, TORCH_XLA, is_native, told_of, torch_neuron_fault

PACKAGE = "optimum-neuron"
VERSION = "0.4.5"
"""the one that trainer/engines/neuron was written for"""
PYTHON = "<3.12,>=3.10"
REQUIREMENTS = (
    "transformers~=4.57.1",
    "optimum~=2.0.0",
    "huggingface_hub>=0.35.3",
    "trl==0.24.0",
    "peft==0.17.0",
    "evaluate==0.4.3",
    "accelerate==1.8.1",
)
"""What its metadata says with extra ``training``: for machines where it isn't installed. A test compares them."""

COMMAND = "python3.11 -m venv neuron && . neuron/bin/activate && pip install -e '.[neuronx]'"
_ADVICE = f"make it an environment of its own, in the checkout: {COMMAND} (AWS's index: docs/trainium.md)"


def libraries_fault() -> str | None:
    """One line on why this Python can't train on Neuron: what is needed, what is installed, and what to do."""
    return told_of("Neuron", _unfit(), _ADVICE)


def check_libraries(config: Config, stages: Sequence[str]) -> None:
    """Raise UsageError where ``stages`` would train on Neuron with this Python, and it or this machine's runtime
    can't."""
    if fault := fault_here(config, stages):
        raise UsageError(f"accelerator={config.accelerator.name}: {fault}")


def fault_here(config: Config, stages: Sequence[str]) -> str | None:
    """Why this Python, or this machine's runtime, can't train on Neuron by the engine of ``config``, in one line; None
    where ``stages`` don't ask it to."""
    return platform_fault(config) if needs_libraries(config, stages) else None


def platform_fault(config: Config) -> str | None:
    """The same of a configuration that trains on Neuron."""
    return (torch_neuron_fault() if on_torch_neuron(config) else libraries_fault()) or runtime_fault(config)


def needs_libraries(config: Config, stages: Sequence[str]) -> bool:
    """Whether one of ``stages`` trains on Neuron with this Python. Another one, that of the cluster's nodes, is
    asked when its engine starts."""
    trains = bool(set(stages) & set(ON_ACCELERATOR))
    on_neuron = "neuron" in (config.accelerator.engine, config.accelerator.device)
    return trains and on_neuron and _with_this_python(config.cluster)


def _with_this_python(cluster: ClusterConfig) -> bool:
    return not is_submitted(cluster) or cluster.python in (None, sys.executable)


def _unfit() -> Iterator[tuple[str, str]]:
    """What is needed and isn't there, with what is there instead."""
    # Only runs on Neuron ask, and every other command would wait for these imports.
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    version = installed(PACKAGE)
    python, lines = _metadata() if version == VERSION else (PYTHON, REQUIREMENTS)
    if not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        yield f"Python {python}", f"Python {platform.python_version()}"
    if version != VERSION:
        yield f"{PACKAGE}=={VERSION}", f"{PACKAGE} {version}" if version else f"no {PACKAGE}"
    for requirement in map(Requirement, lines):
        found = installed(requirement.name)
        if found is None and version != VERSION:
            continue  # it comes with optimum-neuron
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name}{requirement.specifier}", f"{requirement.name} {found or 'is missing'}"
    if version == VERSION and installed(TORCH_XLA) is None:  # extra neuron is for machines that don't train on Neuron
        yield TORCH_XLA, f"no {TORCH_XLA}"
    native = installed(TORCH_NEURONX)
    if native and is_native(native):
        yield f"{TORCH_NEURONX} up to 2.9 (PyTorch/XLA)", f"{TORCH_NEURONX} {native} (TorchNeuron)"


def _metadata() -> tuple[str, tuple[str, ...]]:
    """Versions of Python and packages that the installed optimum-neuron names."""
    from packaging.requirements import Requirement

    parsed = map(Requirement, metadata.requires(PACKAGE) or [])
    asked = [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": "training"})]
    python: str = metadata.metadata(PACKAGE)["Requires-Python"]
    return python, tuple(f"{one.name}{one.specifier}" for one in asked)
