"""A merged model is what peft's merge_and_unload gives, bit by bit in fp32, for every kind of adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from postprocess.merge import MergeOptions, merge
from postprocess.merge import write as merge_write
from tests.postprocess.merge.models import adapted, load, make_adapter, make_base, peft_merge, stored

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
# No tie is broken by these: peft's merged model is the expected one as it stands.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "all_linear": ("qwen3", {"target_modules": "all-linear", "lora_alpha": 3}),
    "regex": ("llama", {"target_modules": r".*layers\.1\..*(q_proj|down_proj)"}),
    "some_layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "rslora": ("llama", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "dora": ("llama", {"target_modules": ALL_LINEAR, "use_dora": True}),
    "dora_rslora": ("qwen3", {"target_modules": ["v_proj"], "use_dora": True, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ALL_LINEAR,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6, "proj": 3},
            "alpha_pattern": {r"^model\.layers\.0\.self_attn\.v_proj": 24, "down_proj": 1},
        },
    ),
    "modules_to_save": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "norms_saved": ("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "q_norm"]}),
    "all_biases": ("llama", {"target_modules": ["q_proj"], "bias": "all"}),
    "lora_only_biases": ("llama", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "lora_bias": ("llama", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "embedding_dora": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "head": ("llama", {"target_modules": ["v_proj", "lm_head"]}),
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 77, 5]}),
    "tokens_tied": ("llama_tied", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 77, 5]}),
    "tied_untouched": ("llama_tied", {"target_modules": ["q_proj"]}),
    "conv1d": ("gpt2", {"target_modules": GPT2, "fan_in_fan_out": True}),
    "conv1d_not_said": ("gpt2", {"target_modules": GPT2, "fan_in_fan_out": False}),
    "conv1d_dora": ("gpt2", {"target_modules": GPT2, "fan_in_fan_out": True, "use_dora": True}),
    "gaussian": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
}


def merged(tmp_path: Path, base: Path, adapter: Path, **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    record = merge(base, adapter, tmp_path / "out", MergeOptions(**options))
    return stored(tmp_path / "out"), record


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_bitwise_pefts_in_fp32(tmp_path: Path, variant: str) -> None:
    kind, config = VARIANTS[variant]
    base = make_base(tmp_path / "base", kind)
    adapter = make_adapter(tmp_path / "adapter", base, **config)
    found, record = merged(tmp_path, base, adapter)
    expected = peft_merge(base, adapter)
    assert found.keys() == stored(base).keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    assert record["logits"]["compared"]
    assert not record["embeddings_untied"]
    assert record["logits"]["max_difference"] < 0.01 * record["logits"]["max_change_by_adapter"]


@pytest.mark.parametrize("variant", ["all_linear", "dora", "conv1d", "modules_to_save", "tokens", "embedding"])
def test_in_bf16_it_is_at_least_as_close_to_the_exact_sum_as_peft(tmp_path: Path, variant: str) -> None:
    kind, config = VARIANTS[variant]
    base = make_base(tmp_path / "base", kind, torch.bfloat16)
    adapter = make_adapter(tmp_path / "adapter", base, **config)
    found, record = merged(tmp_path, base, adapter)
    exact = exact_merge(base, adapter)
    pefts = peft_merge(base, adapter, torch.bfloat16)
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        ours, theirs = ((t.double() - exact[name]).abs() for t in (tensor, pefts[name]))
        assert ours.max() <= theirs.max(), name
        assert ours.sum() <= theirs.sum(), name
    assert record["logits"]["compared"]


def exact_merge(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """peft's merge of the same weights in fp64."""
    model = adapted(base, adapter).double()
    return {name: p.detach() for name, p in model.merge_and_unload().named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama_tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("llama_tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        ("llama_tied", {"target_modules": ["q_proj", "lm_head"]}),
        ("llama_tied", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("gpt2", {"target_modules": ["c_attn", "lm_head"], "fan_in_fan_out": True}),
        ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["wte"], "fan_in_fan_out": True}),
    ],
)
def test_tied_embeddings_that_come_to_differ_are_stored_apart(
    tmp_path: Path, kind: str, config: dict[str, Any]
) -> None:
    base = make_base(tmp_path / "base", kind)
    adapter = make_adapter(tmp_path / "adapter", base, **config)
    found, record = merged(tmp_path, base, adapter)
    assert record["embeddings_untied"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in found
    model, reference = load(tmp_path / "out"), adapted(base, adapter)
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    tokens = torch.arange(1, 40).reshape(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, reference(tokens).logits, atol=1e-5, rtol=1e-4)


def test_tied_embeddings_saved_with_the_same_values_stay_tied(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama_tied")
    adapter = make_adapter(
        tmp_path / "adapter", base, scale=0.0, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    found, record = merged(tmp_path, base, adapter)
    assert not record["embeddings_untied"]
    assert "lm_head.weight" not in found
    assert record["zero_change"] == ["model.embed_tokens.weight"]


def test_blocks_of_rows_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path / "base", "llama")
    for variant in ("dora", "embedding", "lora_bias", "tokens"):
        adapter = make_adapter(tmp_path / variant, base, **VARIANTS[variant][1])
        monkeypatch.setattr(merge_write, "_BLOCK", 48 * 64)
        merge(base, adapter, tmp_path / f"{variant}_out", MergeOptions(logits=False))
        expected = peft_merge(base, adapter)
        for name, tensor in stored(tmp_path / f"{variant}_out").items():
            assert torch.equal(tensor, expected[name]), (variant, name)


def test_shards_in_and_shards_out(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama", shard_size="40KB")
    assert len(list(base.glob("model-*.safetensors"))) > 2
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=ALL_LINEAR)
    found, record = merged(tmp_path, base, adapter, shard_bytes=30_000)
    expected = peft_merge(base, adapter)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 36_000 for file in files)
    with safe_open(files[0], framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert record["files"].keys() == {file.name for file in (tmp_path / "out").iterdir()} - {"merge.json"}


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("float16", torch.float16), ("float32", torch.float32)])
def test_another_dtype_is_for_all_weights_and_for_the_configuration(
    tmp_path: Path, dtype: str, torch_dtype: torch.dtype
) -> None:
    base = make_base(tmp_path / "base", "llama", torch.bfloat16)
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    found, record = merged(tmp_path, base, adapter, dtype=dtype)
    exact = exact_merge(base, adapter)
    assert {tensor.dtype for tensor in found.values()} == {torch_dtype}
    for name, tensor in stored(base).items():
        if "q_proj.weight" not in name:
            assert torch.equal(found[name], tensor.to(torch_dtype))
        else:
            torch.testing.assert_close(found[name].double(), exact[name], rtol=1e-3, atol=1e-6)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch_dtype
    assert record["tensors"]["same_values_in_other_dtype"] == len(found) - 2


def test_an_adapter_in_bf16_on_a_base_in_fp32(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    rewrite(adapter, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    found, _ = merged(tmp_path, base, adapter)
    expected = peft_merge(base, adapter)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def rewrite(adapter: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def test_names_without_the_models_prefix_are_understood(tmp_path: Path) -> None:
    """GPT-2's own checkpoint was saved from the model without its head."""
    from safetensors.torch import load_file, save_file

    base = make_base(tmp_path / "base", "gpt2")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["c_attn"], fan_in_fan_out=True)
    expected = peft_merge(base, adapter)
    file = base / "model.safetensors"
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    file.unlink()  # a model that was loaded lies in it, and safetensors below 0.8 would write over that
    save_file(renamed, file, {"format": "pt"})
    found, _ = merged(tmp_path, base, adapter)
    assert found.keys() == stored(base).keys()
    assert all(torch.equal(tensor, expected[f"transformer.{name}"]) for name, tensor in found.items())


def test_the_result_generates(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "qwen3", torch.bfloat16)
    adapter = make_adapter(tmp_path / "adapter", base, target_modules="all-linear", use_dora=True)
    merged(tmp_path, base, adapter)
    model = load(tmp_path / "out")
    answer = model.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert answer.shape == (1, 8)


def test_a_change_of_exactly_zero_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "v_proj"])
    rewrite(adapter, lambda tensors: {n: t * (0 if "q_proj.lora_B" in n else 1) for n, t in tensors.items()})
    _, record = merged(tmp_path, base, adapter)
    assert record["zero_change"] == [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]
    assert record["tensors"]["changed"] == 4


def test_the_same_merge_again_does_nothing(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    _, first = merged(tmp_path, base, adapter)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    _, second = merged(tmp_path, base, adapter)
    assert second == {**first, "reused": True}
    assert before == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
