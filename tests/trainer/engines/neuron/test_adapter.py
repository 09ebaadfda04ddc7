"""An adapter on Neuron begins as the torch engine's does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict

from launcher.architecture.family_table import GATE_UP
from launcher.config.schema import ArchitectureConfig, Config
from tests.trainer.models.conftest import composed
from trainer.engines.neuron.adapter import initial_adapter, share_first_half
from trainer.fetch.tiny_llama import build
from trainer.models.load import apply_method, load_model

ARCHITECTURE = ArchitectureConfig("llama", 64, 128, 2, 4, 2, 16, 264, 4096, True)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    build(directory, ARCHITECTURE)
    return directory


def config(*overrides: str) -> Config:
    return composed("model=tiny_llama", *overrides)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", ["r16_qv", "r16_all_linear"])
def test_it_is_the_torch_engines_bit_for_bit(model_dir: Path, precision: str, lora: str) -> None:
    settings = config(f"training.precision={precision}", f"lora={lora}", "seed=3")
    adapted = apply_method(load_model(model_dir, settings, "sdpa"), settings)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    found = initial_adapter(model_dir, settings)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_seed_is_another_adapter(model_dir: Path) -> None:
    one, other = (initial_adapter(model_dir, config(f"seed={seed}")) for seed in (1, 2))
    name = next(name for name in one if "lora_A" in name)
    assert not torch.equal(one[name], other[name])


def test_layers_that_become_one_share_their_first_half(model_dir: Path) -> None:
    adapter = initial_adapter(model_dir, config("lora=r16_all_linear"))
    shared = share_first_half(adapter, GATE_UP)
    layer = "base_model.model.model.layers.1.mlp"
    assert torch.equal(shared[f"{layer}.up_proj.lora_A.weight"], adapter[f"{layer}.gate_proj.lora_A.weight"])
    assert torch.equal(shared[f"{layer}.gate_proj.lora_A.weight"], adapter[f"{layer}.gate_proj.lora_A.weight"])
    assert torch.equal(shared[f"{layer}.down_proj.lora_A.weight"], adapter[f"{layer}.down_proj.lora_A.weight"])
