"""The libraries that training on TorchNeuron needs. Read from packages' metadata: nothing is imported.

torch-neuronx is one name for two stacks that can't share an environment: up to 2.9 it is PyTorch/XLA, which engine
neuron trains with; from 2.11 (private betas; 2.13 is the first public one) it is TorchNeuron.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from launcher.run_dir.provenance import installed

TORCH_NEURONX, TORCH_XLA = "torch-neuronx", "torch-xla"
FIRST_NATIVE = "2.11"
NEEDED = ("torch-neuronx>=2.13", "nki", "accelerate>=1.13", "transformers>=5.4")
"""accelerate and transformers: the first that know the device (their wheels)"""

COMMAND = (
    "python3.12 -m venv torch-neuron && . torch-neuron/bin/activate && "
    "pip install -e . 'torch-neuronx==2.13.*' 'neuronx-cc==2.*' nki"
)
_ADVICE = f"make it an environment of its own, in the checkout: {COMMAND} (AWS's index: docs/trainium.md)"


def torch_neuron_fault() -> str | None:
    """One line on why this Python can't train on TorchNeuron: what is needed, what is installed, and what to do."""
    return told_of("TorchNeuron", _unfit(), _ADVICE)


def told_of(platform: str, unfit: Iterable[tuple[str, str]], advice: str) -> str | None:
    """One line on what training on ``platform`` needs and what is there instead; None where nothing is ``unfit``."""
    pairs = list(unfit)
    if not pairs:
        return None
    needed, here = (", ".join(words) for words in zip(*pairs, strict=True))
    return f"training on {platform} needs {needed}; installed: {here}; {advice}"


def is_native(version: str) -> bool:
    """Whether that version of torch-neuronx is TorchNeuron, not PyTorch/XLA."""
    from packaging.version import Version  # every other command would wait for it

    return Version(version) >= Version(FIRST_NATIVE)


def _unfit() -> Iterator[tuple[str, str]]:
    """What is needed and isn't there, with what is there instead."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, NEEDED):
        found = installed(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            of_xla = requirement.name == TORCH_NEURONX and found is not None and not is_native(found)
            what = f"{requirement.name} {found}" if found else f"no {requirement.name}"
            yield str(requirement), f"{what} (PyTorch/XLA)" if of_xla else what
    if xla := installed(TORCH_XLA):
        yield f"no {TORCH_XLA}", f"{TORCH_XLA} {xla}"
    native, torch = installed(TORCH_NEURONX), installed("torch")
    if native and torch and is_native(native) and _minor(native) != _minor(torch):
        yield f"torch=={_minor(native)}.*", f"torch {torch}"


def _minor(version: str) -> str:
    """2.13 of 2.13.3.0.1278: torch-neuronx begins with the version of torch that it is for."""
    return ".".join(version.split(".")[:2])
