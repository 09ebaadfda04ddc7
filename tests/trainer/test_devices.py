"""What differs between devices stands in one module."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from launcher.errors import TrntuneError
from launcher.paths import ROOT
from trainer import device
from trainer.checkpoints import rng

NAMES = re.compile(r"\btorch\.(cuda|neuron|accelerator)\b|[\"']cuda[\"']|\bcuda\b")


def test_no_other_module_names_a_device():
    files = [path for part in ("trainer", "postprocess") for path in sorted((ROOT / part).rglob("*.py"))]
    found = [str(path.relative_to(ROOT)) for path in files if NAMES.search(path.read_text(encoding="utf-8"))]
    assert found == ["trainer/device.py"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cuda", "accelerator.device=cuda: torch sees no CUDA device here; use accelerator=cpu"),
        ("neuron", "accelerator.device=neuron: torch sees no Neuron device here: it needs an instance with Trainium2"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_device_that_is_not_here_is_refused(kind, said, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not device.is_here(kind)
    with pytest.raises(TrntuneError) as refused:
        device.check(kind, precision)
    assert str(refused.value).startswith(said)
    assert device.is_here("cpu")
    device.check("cpu", precision)


class Generator:
    """As far as a checkpoint asks torch's module of a kind of devices."""

    def __init__(self) -> None:
        self.state = torch.arange(16, dtype=torch.uint8)

    def module(self) -> SimpleNamespace:
        return SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_rng_state=lambda: self.state,
            set_rng_state=lambda state: setattr(self, "state", state),
        )


@pytest.mark.parametrize("kind", ["cuda", "neuron"])
def test_a_devices_generator_is_kept_under_its_name_and_put_back(kind, monkeypatch):
    generator = Generator()
    monkeypatch.setattr(torch, kind, generator.module(), raising=False)
    state = rng.capture()
    before = generator.state.clone()
    assert torch.equal(state[kind], before)
    generator.state += 1  # what is kept is a copy
    assert torch.equal(state[kind], before)
    rng.restore(state)
    assert torch.equal(generator.state, before)


def test_states_of_another_kind_of_device_are_left_alone(monkeypatch):
    """A run of a GPU goes on on a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = rng.capture()
    assert set(state) & set(device.WITH_GENERATORS) == set()
    rng.restore({**state, "cuda": torch.zeros(16, dtype=torch.uint8)})
