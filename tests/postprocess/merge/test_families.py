"""Merged models of other families than Llama: logits and greedy answers are those of the adapted model by transformers'
eager attention, which leaves no soft cap and no sink out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from postprocess.merge import MergeOptions, merge
from trainer.families.cases import Case
from trainer.families.choose import plain_attention
from trainer.families.small import small_config, small_model
from trainer.models.adapt import lora_targets

FAMILIES = (
    *("mistral", "gemma2", "gpt_oss", "mixtral", "llama4_text", "gpt_neox"),
    *("falcon", "bloom", "granitemoe", "bamba", "lfm2", "minimax", "rwkv"),
    *("qwen2_moe", "deepseek_v3"),
)
NOT_ADAPTED = ("out_proj", "conv1d", "x_proj", "dt_proj")
"""peft refuses some of these layers in state space models"""


def base_and_adapter(directory: Path, family: str) -> tuple[Path, Path]:
    model = small_model(small_config(Case(family).config(), 64), "eager")
    model.save_pretrained(directory / "base")
    targets = [name for name in lora_targets(model) if name not in NOT_ADAPTED]
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(str(directory / "adapter"))
    return directory / "base", directory / "adapter"


def load(directory: Path, attention: str | None):
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation=attention, use_safetensors=True
    ).eval()


def greedy(model, ids: torch.Tensor, steps: int) -> list[int]:
    """By forward passes without a cache."""
    for _ in range(steps):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_computes_and_answers_as_the_adapted_one(family, tmp_path):
    base, adapter = base_and_adapter(tmp_path, family)
    record = merge(base, adapter, tmp_path / "merged", MergeOptions())
    assert record["logits"]["compared"]
    merged = load(tmp_path / "merged", plain_attention(tmp_path / "merged"))
    adapted = PeftModel.from_pretrained(load(base, "eager"), str(adapter)).eval()
    ids = torch.randint(3, 90, (1, 21), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = adapted(input_ids=ids, use_cache=False).logits
        largest = float(expected.abs().max())
        assert float((merged(ids, use_cache=False).logits - expected).abs().max()) < 1e-4 * largest
        with adapted.disable_adapter():
            assert float((adapted(input_ids=ids, use_cache=False).logits - expected).abs().max()) > 1e-3 * largest
        answer = merged.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert answer[0].tolist() == greedy(adapted.base_model.model, ids, 12)
