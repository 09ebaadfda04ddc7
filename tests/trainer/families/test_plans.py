"""The plan of models of other families, from their config.json alone."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from launcher.architecture.attention_pairs import Extent, mean_pairs
from trainer.families.experts import idle_parameters
from trainer.families.small import small_config

DATA = ("dataset.rows=1032", "dataset.tokens_per_row=100", "dataset.max_samples=null", "training.max_length=256")


def model(tmp_path, family: str, **changes) -> tuple[str, str]:
    config = small_config(AutoConfig.for_model(family, **changes), 256)
    config.save_pretrained(tmp_path)
    return "model=local", f"model.path={tmp_path}"


def test_a_window_counts_in_the_pairs_of_attention(plan, tmp_path):
    arguments = (*model(tmp_path, "gemma2"), "dataset=dolly15k", *DATA)  # a layer with a window of 8, one without
    found = plan(*arguments)
    extents = (Extent("window", 8), Extent())
    assert found["epoch"]["pairs"] == pytest.approx(found["epoch"]["examples"] * mean_pairs(100.0, extents))


def test_a_mixture_of_experts_is_planned_by_what_a_token_uses(plan, answer, tmp_path):
    arguments = (*model(tmp_path, "qwen3_moe"), "dataset=dolly15k", *DATA, "lora.target_modules=[all-linear]")
    found = plan(*arguments)["parameters"]
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        real = AutoModelForCausalLM.from_config(config)
    idle = idle_parameters(real, config)
    assert found["total"] == sum(p.numel() for p in real.parameters())
    assert found["idle"] == idle == found["total"] - found["matmul"] - real.get_input_embeddings().weight.numel()
    done = answer(*arguments, "plan=true")
    assert f"{found['total'] - idle:,}" in done.stdout


def test_a_model_without_attention_has_no_pairs(plan, tmp_path):
    found = plan(*model(tmp_path, "mamba"), "dataset=dolly15k", *DATA, "lora.target_modules=[in_proj]")
    assert found["epoch"]["pairs"] == 0
    assert json.dumps(found)


def test_layers_that_are_not_there_are_refused_with_the_familys_own(launch, tmp_path):
    config = AutoConfig.for_model("phi3", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=300)
    config.intermediate_size, config.pad_token_id = 96, 0
    config.save_pretrained(tmp_path)
    done = launch("model=local", f"model.path={tmp_path}")
    assert done.returncode == 2
    assert "take lora.target_modules=[qkv_proj], or [all-linear] for all of them" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
