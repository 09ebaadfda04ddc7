"""The two sets of libraries that are tested: the newest, and that of optimum-neuron (CONTRIBUTING.md).

What reads optimum-neuron's source belongs to the second. Elsewhere such a test is skipped, and where TRNTUNE_SET=neuron
says that this is the second set, it fails: an environment without optimum-neuron would pass by testing nothing.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import pytest

IS_NEURON = os.environ.get("TRNTUNE_SET") == "neuron"
REASON = "optimum-neuron isn't installed: .ci/run tests this with constraints-neuron.txt"


def optimum_neuron_missing(reason: str = REASON) -> NoReturn:
    """Skip the test, or the module that is being imported; fail in the set that has optimum-neuron."""
    if IS_NEURON:
        pytest.fail(f"TRNTUNE_SET=neuron, but {reason}")
    pytest.skip(reason, allow_module_level=True)


def neuron_source(path: str) -> Path:
    """A file of the installed optimum-neuron, such as optimum/neuron/version.py. It can't be imported without
    torch_xla, but it can be read."""
    try:
        files = metadata.files("optimum-neuron") or []
    except metadata.PackageNotFoundError:
        optimum_neuron_missing()
    (found,) = [file for file in files if str(file) == path]
    return Path(str(found.locate()))
