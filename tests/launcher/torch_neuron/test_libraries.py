"""What can be seen of an environment that can't train on TorchNeuron, or no longer on XLA, is refused in one line."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from launcher.app import check
from launcher.errors import UsageError
from launcher.neuron import libraries as of_xla
from launcher.plan import build
from launcher.plan.show import footnotes
from launcher.torch_neuron.libraries import COMMAND, torch_neuron_fault
from tests.launcher.conftest import composition, single

TINY = (
    "experiment=tiny", "accelerator=trn2_3xlarge_native", "parallelism=single", "dataset.packing=false",
    "training.max_length=512",
)  # fmt: skip
FITTING = {
    "torch-neuronx": "2.13.3.0.2001", "nki": "0.7.0", "torch": "2.13.0", "accelerate": "1.15.0",
    "transformers": "5.24.0",
}  # fmt: skip


@pytest.fixture
def having(tmp_path, monkeypatch):
    """An environment that says of itself that it has these packages: directories of metadata, found before its own."""

    def use(packages):
        folder = tmp_path / "site"
        for name, version in packages.items():
            info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(folder))
        assert all(metadata.version(name) == version for name, version in packages.items())

    return use


def without(*names):
    return {name: version for name, version in FITTING.items() if name not in names}


def test_what_fits_is_not_refused_and_nothing_is_imported(having, cwd):
    having(FITTING)
    check(composition(*TINY))
    assert "torch_neuronx" not in sys.modules


CHANGES = [
    (without("torch-neuronx", "nki"), "needs torch-neuronx>=2.13, nki; installed: no torch-neuronx, no nki;"),
    (
        {**FITTING, "torch-neuronx": "2.8.0.2.10.16998"},
        "needs torch-neuronx>=2.13; installed: torch-neuronx 2.8.0.2.10.16998 (PyTorch/XLA);",
    ),
    (
        {**FITTING, "torch-neuronx": "2.12.3.0.1636"},
        "needs torch-neuronx>=2.13, torch==2.12.*; installed: torch-neuronx 2.12.3.0.1636, torch 2.13.0;",
    ),
    ({**FITTING, "torch-xla": "2.8.1"}, "needs no torch-xla; installed: torch-xla 2.8.1;"),
    (
        {**FITTING, "accelerate": "1.8.1", "transformers": "4.57.6"},
        "needs accelerate>=1.13, transformers>=5.4; installed: accelerate 1.8.1, transformers 4.57.6;",
    ),
    ({**FITTING, "torch-neuronx": "2.14.3.0.1"}, "needs torch==2.14.*; installed: torch 2.13.0;"),
]


@pytest.mark.parametrize(("packages", "said"), CHANGES, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_named_with_the_command_that_mends_it(packages, said, having, cwd):
    having(packages)
    with pytest.raises(UsageError) as refused:
        check(composition(*TINY))
    assert str(refused.value).startswith(f"accelerator=trn2_3xlarge_native: training on TorchNeuron {said}")
    assert COMMAND in str(refused.value)
    assert list(cwd.iterdir()) == []


def test_a_plan_is_made_and_says_it(having, cwd):
    having({**FITTING, "torch-xla": "2.8.1"})
    (note,) = [line for line in footnotes([build.make(single(*TINY).config)]) if "started here" in line]
    assert note.startswith("note: started here it would be refused: training on TorchNeuron needs no torch-xla;")


@pytest.mark.parametrize("version", ["2.8.0.2.10.16998", "2.9.0.2.15.32035", "2.13.3.0.2001"])
def test_engine_neuron_refuses_torch_neuron(version, having):
    having({"torch-neuronx": version})
    named = "torch-neuronx up to 2.9 (PyTorch/XLA)" in (of_xla.libraries_fault() or "")
    assert named == version.startswith("2.13")
    if named:
        assert f"torch-neuronx {version} (TorchNeuron)" in str(of_xla.libraries_fault())


def test_what_trains_nothing_here_is_not_refused(having, cwd):
    having({"torch-neuronx": "2.8.0"})
    assert torch_neuron_fault()
    check(composition(*TINY, "stages=[fetch]"))
    check(
        composition(
            *TINY, "dry_run=true", "cluster=slurm", "cluster.processes_per_node=1", "cluster.cache_dir=/fsx/trntune"
        )
    )
