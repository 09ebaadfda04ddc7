"""Mixtures of experts: since transformers 5 their experts are one parameter in the model, and tensors of their own in
files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from postprocess.merge import MergeOptions, merge
from tests.postprocess.merge.adapters import FILE, QUICK, configure, refused, rewrite, same
from tests.postprocess.merge.models import load, make_adapter, peft_merge, stored
from trainer.families.cases import Case
from trainer.families.small import small_config, small_model
from trainer.libraries.transformers_versions import parts_of_parameters

R = 4
EXPERTS = [f"model.layers.{layer}.block_sparse_moe.experts.{number}" for layer in (0, 1) for number in range(4)]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixture") / "base"
    small_model(small_config(Case("mixtral").config(), 64), "eager").save_pretrained(directory)
    return directory


@pytest.fixture
def base(mixture: Path, tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    for file in mixture.iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "base"


def test_only_what_is_adapted_changes_and_files_keep_their_names(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=["model.norm"])
    record = merge(base, adapter, tmp_path / "out")
    before, found, expected = stored(base), stored(tmp_path / "out"), peft_merge(base, adapter)
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert found.keys() == before.keys()
    assert changed == {"model.norm.weight", *(f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1))}
    assert all(torch.equal(found[name], expected[name]) for name in changed)
    assert record["tensors"]["changed"] == 3


def test_experts_in_another_dtype_are_proved_by_logits(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    record = merge(base, adapter, tmp_path / "out", MergeOptions(dtype="bfloat16"))
    assert record["logits"]["compared"]
    assert record["logits"]["max_difference"] > 0
    assert {tensor.dtype for tensor in stored(tmp_path / "out").values()} == {torch.bfloat16}


def test_an_adapter_on_experts_one_by_one(base: Path, tmp_path: Path) -> None:
    """As transformers 4.57 and peft 0.17 train it; where experts are one parameter it is refused, never left out."""
    adapter = make_adapter(tmp_path / "adapter", base, r=R, target_modules=["q_proj"])
    weights, targets = stored(base), ("w1", "w2", "w3")
    layers = [f"{expert}.{target}" for expert in EXPERTS for target in targets]

    def with_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for layer in layers:
            rows, columns = weights[f"{layer}.weight"].shape
            tensors[f"base_model.model.{layer}.lora_A.weight"] = torch.randn(R, columns) * 0.05
            tensors[f"base_model.model.{layer}.lora_B.weight"] = torch.randn(rows, R) * 0.05
        return tensors

    rewrite(adapter, with_experts)
    configure(adapter, target_modules=["q_proj", *targets])
    if parts_of_parameters(load(base)):
        refused(base, adapter, "adapts experts one by one, and model.layers.0.mlp.experts.* merge it with .* 4.57$")
        configure(adapter, target_modules=["q_proj", "w1"])
        refused(base, adapter, "doesn't fit the base: .*w1 without also targeting w3")
        configure(adapter, target_modules=["q_proj"])
        refused(base, adapter, "48 tensors match nothing in the base")
        return
    expected = peft_merge(base, adapter)
    assert merge(base, adapter, tmp_path / "out")["logits"]["compared"]
    same(tmp_path / "out", expected)


def test_an_adapter_that_has_experts_in_full(base: Path, tmp_path: Path) -> None:
    in_one = bool(parts_of_parameters(load(base)))
    saved = ["experts"] if in_one else ["experts.1.w2"]
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=saved)
    if in_one:
        match = r"layers.0.mlp.experts.gate_up_proj is computed from .*experts.0.w1.weight, .* can't be merged here"
        refused(base, adapter, match)
        return
    expected = peft_merge(base, adapter)
    merge(base, adapter, tmp_path / "out", QUICK)
    same(tmp_path / "out", expected)


def test_a_base_without_one_of_its_experts(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    tensors = load_file(base / "model.safetensors")
    del tensors[f"{EXPERTS[-1]}.w2.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    refused(base, adapter, r"experts.*, but config.json asks for \[4, |1 weights that config.json asks for are missing")


def test_an_adapter_of_another_layers_name_is_none(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    tensors = load_file(adapter / FILE)
    save_file({name.replace("self_attn.q_proj", "mlp.gate"): t for name, t in tensors.items()}, adapter / FILE)
    refused(base, adapter, "4 tensors match nothing in the base")
