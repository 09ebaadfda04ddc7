"""Training with the real optimum-neuron on a CPU; a module says by its fixture ``processes`` how it is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.neuron.runs import Processes, launch


@pytest.fixture
def fetched(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run directory in which only training on Neuron is left to do."""
    return lambda name, *overrides: launch(tmp_path / name, "accelerator=trn1_32xlarge", *overrides, "stages=[fetch]")


@pytest.fixture
def train(fetched: Callable[..., Path], processes: Processes) -> Callable[..., Path]:
    """Trains in so many processes; returns the run directory."""

    def run(name: str, number: int, *overrides: str, chip: str = "trn1") -> Path:
        directory = fetched(name, *overrides)
        processes.go_on(directory, number, chip)
        return directory

    return run


@pytest.fixture
def by_torch(tmp_path: Path) -> Callable[..., Path]:
    """Trains with the torch engine on the CPU, in one process; returns the run directory."""
    return lambda *overrides: launch(tmp_path / "torch", "accelerator=cpu", *overrides, "stages=[fetch,train]")
