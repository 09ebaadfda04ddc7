"""The Neuron runtime of a machine, as Ubuntu's own package manager tells it: of a list of packages made here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.neuron.libraries import platform_fault
from launcher.neuron.runtime import PACKAGE, installed_runtime, runtime_fault
from tests.launcher.conftest import single

XLA = ("accelerator=trn1_32xlarge", "parallelism=trn1_tp8_dp4", "model=llama31_8b")
NATIVE = ("accelerator=trn2_3xlarge_native", "parallelism=single", "dataset.packing=false", "experiment=tiny")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes this machine one with that version of the runtime."""
    if shutil.which("dpkg-query") is None:
        pytest.skip("no dpkg-query here")

    def make(version: str, status: str = "install ok installed", package: str = PACKAGE) -> None:
        (tmp_path / "status").write_text(
            f"Package: {package}\nStatus: {status}\nVersion: {version}\nArchitecture: amd64\n"
            "Maintainer: nobody <nobody@example.invalid>\nDescription: none\n"
        )
        (tmp_path / "info").mkdir(exist_ok=True)
        (tmp_path / "updates").mkdir(exist_ok=True)
        monkeypatch.setenv("DPKG_ADMINDIR", str(tmp_path))
        installed_runtime.cache_clear()  # a process asks its machine once

    yield make
    installed_runtime.cache_clear()


@pytest.mark.parametrize(
    ("version", "known"),
    [("2.28.23.0-dd5879008", (2, 28)), ("2.35.30.0-1", (2, 35)), ("1:2.34.0.0", (2, 34)), ("3.0", (3, 0))],
)
def test_its_version_is_read(version, known, machine):
    machine(version)
    assert installed_runtime() == known


def test_a_package_that_is_gone_or_another_one_is_no_runtime(machine):
    machine("2.35.30.0-1", status="deinstall ok config-files")
    assert installed_runtime() is None
    machine("2.35.30.0-1", package="other")
    assert installed_runtime() is None


@pytest.mark.parametrize(
    ("overrides", "version", "said"),
    [
        (XLA, "2.28.23.0-1", None),
        (XLA, "2.34.0.0-1", "accelerator.neuron.inflight_requests=3: this machine's"),
        ((*XLA, "accelerator.neuron.inflight_requests=0"), "2.34.0.0-1", None),
        (
            NATIVE,
            "2.33.1.0-1",
            "training on TorchNeuron needs aws-neuronx-runtime-lib>=2.34, and this machine has 2.33",
        ),
        (NATIVE, "2.35.30.0-1", None),
        (("experiment=tiny",), "2.33.1.0-1", None),
    ],
)
def test_each_road_is_refused_on_the_others_runtime(overrides, version, said, machine):
    config = single(*overrides).config
    machine(version)
    fault = runtime_fault(config)
    assert fault is None if said is None else str(fault).startswith(said)


def test_it_is_asked_for_once_the_libraries_fit(machine, monkeypatch):
    config = single(*NATIVE).config
    machine("2.33.1.0-1")
    assert "needs torch-neuronx" in str(platform_fault(config))
    monkeypatch.setattr("launcher.neuron.libraries.torch_neuron_fault", lambda: None)
    assert str(platform_fault(config)).endswith("take an image of Neuron SDK 2.33 or newer")
