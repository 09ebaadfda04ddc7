"""Adapters of other releases of peft and of other trainers.

What newer and older releases write was looked up in their own files: peft 0.5 to 0.21 wrote adapters of every kind
here, and their merge_and_unload gave what this merge gives.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from launcher.errors import TrntuneError
from postprocess.merge import MergeOptions, merge
from tests.postprocess.merge.adapters import FILE, QUICK, ROWS, configure, refused, rename, same, save_tokenizer
from tests.postprocess.merge.models import make_adapter, peft_merge, stored
from trainer.libraries.peft_versions import trains_rows_of

# What transformers saves of one: 5 has the second in the third.
TOKENIZER = {"tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"}
# What each release writes beside the fields of peft 0.17, of a plain LoRA.
NEWER: dict[str, dict[str, Any]] = {
    "0.18.1": {"alora_invocation_tokens": None, "arrow_config": None, "ensure_weight_tying": False},
}
NEWER["0.19.1"] = {**NEWER["0.18.1"], "lora_ga_config": None, "use_bdlora": None}
NEWER["0.20.0"] = {**NEWER["0.19.1"], "monteclora_config": None, "velora_config": None}
NEWER["0.21.0"] = {**NEWER["0.20.0"], "kasa_config": None}


@pytest.mark.parametrize("release", NEWER)
def test_what_newer_releases_write_of_a_plain_lora(bases, tmp_path: Path, release: str) -> None:
    base = bases("llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2})
    expected = peft_merge(base, adapter)
    configure(adapter, peft_version=release, **NEWER[release])
    assert merge(base, adapter, tmp_path / "out", MergeOptions())["logits"]["compared"]
    same(tmp_path / "out", expected)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"velora_config": {"scale": 1.0}, "peft_version": "0.20.0"}, r"velora_config=.* wrote the adapter \(0.20.0\)"),
        ({"use_bdlora": {"nblocks": 2}, "kasa_config": {"a": 1}}, r"doesn't know (use_bdlora|kasa_config)=.*, "),
        ({"arrow_config": {"top_k": 2}}, "this merge doesn't know arrow_config="),
        ({"monteclora_config": {"num_samples": 4}}, "this merge doesn't know monteclora_config="),
        ({"ensure_weight_tying": True, "target_modules": ["embed_tokens"]}, "doesn't know ensure_weight_tying=True"),
        ({"init_lora_weights": "lora_ga", "lora_ga_config": None}, "changed the base weights before training"),
        ({"r": "four"}, "peft can't read its configuration|doesn't fit the base"),
    ],
)
def test_settings_that_mean_something_are_named(bases, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    base = bases("llama")
    targets = changes.get("target_modules", ["q_proj"])
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=targets)
    configure(adapter, **changes)
    with pytest.raises(TrntuneError, match=match) as caught:
        merge(base, adapter, tmp_path / "out", QUICK)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rows_of_the_head_are_merged_where_peft_can_train_them(bases, tmp_path: Path) -> None:
    """As 0.18 does; 0.17 has no such adapter but one of a newer release."""
    base = bases("llama")
    rows, head = [3, 70], "lm_head.token_adapter.trainable_tokens_delta"
    if trains_rows_of(nn.Linear(1, 1)):
        adapter = make_adapter(
            tmp_path / "adapter", base, target_modules=["q_proj"], trainable_token_indices={"lm_head": rows}
        )
        expected = peft_merge(base, adapter)
        assert merge(base, adapter, tmp_path / "out")["logits"]["compared"]
        same(tmp_path / "out", expected)
        trained = load_file(adapter / FILE)[f"base_model.model.{head}"]
        assert torch.equal(stored(tmp_path / "out")["lm_head.weight"][rows], trained)
        return
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    configure(adapter, trainable_token_indices={"lm_head": rows})
    refused(base, adapter, "rows of lm_head, which is no embedding: .* 0.18 or later")


def test_tied_weights_that_a_newer_release_has_kept_tied(bases, tmp_path: Path) -> None:
    """It names one in modules_to_save and saves both, with the same values."""
    base = bases("llama_tied")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    tensors = load_file(adapter / FILE)
    tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.model.embed_tokens.weight"].clone()
    save_file(tensors, adapter / FILE)
    configure(adapter, ensure_weight_tying=True, peft_version="0.18.1")
    record = merge(base, adapter, tmp_path / "out")
    assert record["logits"]["compared"]
    assert not record["embeddings_untied"]
    found = stored(tmp_path / "out")
    assert "lm_head.weight" not in found
    assert torch.equal(found["model.embed_tokens.weight"], tensors["base_model.model.lm_head.weight"])


def test_biases_by_the_names_of_peft_before_0_7(bases, tmp_path: Path) -> None:
    base = bases("llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], bias="all")
    expected = peft_merge(base, adapter)
    rename(adapter, lambda name: name.replace(".base_layer.", "."))
    old = ("auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights")
    old += ("layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r")
    config = json.loads((adapter / "adapter_config.json").read_text())
    fields = {key: config[key] for key in (*old, "revision", "target_modules", "task_type")}
    (adapter / "adapter_config.json").write_text(json.dumps(fields))
    assert merge(base, adapter, tmp_path / "out")["logits"]["compared"]
    same(tmp_path / "out", expected)


def test_a_pickle_is_converted_by_the_command_that_its_refusal_names(
    bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases("llama")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    expected = peft_merge(base, adapter)
    torch.save(load_file(adapter / FILE), adapter / "adapter_model.bin")
    (adapter / FILE).unlink()
    with pytest.raises(TrntuneError, match=r"only adapter_model.bin, a pickle; convert it once") as caught:
        merge(base, adapter, tmp_path / "out", QUICK)
    monkeypatch.chdir(adapter)
    [code] = re.findall(r'python -c "(.*)"$', str(caught.value))
    exec(code)
    merge(base, adapter, tmp_path / "out", QUICK)
    same(tmp_path / "out", expected)


# Small copies of what other trainers leave behind: their configurations and the files beside the adapter's.
def unsloth(adapter: Path, base: Path) -> None:
    """A regular expression for the layers, as for its models with vision; its mark; a tokenizer."""
    part = "self_attn|attention|mlp|feed_forward|ffn|dense"
    targets = (
        rf"(?:.*?(?:language|text).*?(?:{part}).*?(?:q_proj|v_proj).*?)"
        rf"|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{part})\.(?:(?:q_proj|v_proj)))"
    )
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers", "unsloth_fixed": True}
    configure(adapter, target_modules=targets, auto_mapping=mapping, peft_version="0.18.1", **NEWER["0.18.1"])
    configure(adapter, task_type=None, base_model_name_or_path="unsloth/llama-bnb-4bit", lora_dropout=0)


def llama_factory(adapter: Path, base: Path) -> None:
    for name in ("training_args.bin", "trainer_state.json", "all_results.json", "trainer_log.jsonl"):
        (adapter / name).write_bytes(b"{}")
    (adapter / "checkpoint-10").mkdir()
    shutil.copy(adapter / FILE, adapter / "checkpoint-10")


def axolotl(adapter: Path, base: Path) -> None:
    """The base's config.json, optimizer and card beside the adapter."""
    shutil.copy(base / "config.json", adapter)
    (adapter / "README.md").write_text("card")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (adapter / name).write_bytes(b"x")


def torchtune(adapter: Path, base: Path) -> None:
    """The few settings that it knows; another name for the magnitudes."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    names = ("r", "lora_alpha", "target_modules", "peft_type", "use_dora")
    (adapter / "adapter_config.json").write_text(json.dumps({name: config[name] for name in names}))
    rename(adapter, lambda name: f"{name}.weight" if name.endswith("magnitude_vector") else name)


@pytest.mark.parametrize("trainer", [unsloth, llama_factory, axolotl, torchtune])
def test_adapters_of_other_trainers(bases, tmp_path: Path, trainer: Callable[[Path, Path], None]) -> None:
    base = bases("llama")
    dora = trainer is torchtune
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "v_proj"], use_dora=dora)
    expected = peft_merge(base, adapter)
    trainer(adapter, base)
    save_tokenizer(adapter, *(f"w{number}" for number in range(ROWS - 2)))
    record = merge(base, adapter, tmp_path / "out")
    assert record["logits"]["compared"]
    assert record["tokenizer"]["from"] == "adapter"
    same(tmp_path / "out", expected)
    tokenizer = {file.name for file in adapter.iterdir()} & TOKENIZER
    model = {"config.json", "generation_config.json", "model.safetensors", "merge.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == tokenizer | model
