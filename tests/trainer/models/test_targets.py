"""lora.target_modules against the layers of other families than Llama: all, the family's own, or what is typed."""

from __future__ import annotations

import pytest
from peft import get_peft_model
from transformers import AutoConfig

from launcher.architecture.adapter_faults import own_choice
from launcher.config.schema import LoraConfig
from launcher.errors import TrntuneError
from trainer.families.small import small_config, small_model
from trainer.libraries.transformers_versions import parts_of_parameters
from trainer.models.adapt import check_faults, lora_targets, peft_config


def model(family: str):
    return small_model(small_config(AutoConfig.for_model(family), 64), "eager")


def adapted(family: str, targets: list[str]) -> set[str]:
    """The last part of the names of the layers that peft adapts."""
    found = model(family)
    lora = LoraConfig(name="test", target_modules=targets)
    peft = get_peft_model(found, peft_config(lora, check_faults(found, lora)))
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in peft.named_parameters() if ".lora_A" in name}


# Layers of experts, and the router's: since transformers 5 experts are one parameter, and this router a module that
# gives more than a product. A shared expert is a dense layer by names of its own, and its gate is one.
IN_ONE = bool(parts_of_parameters(model("mixtral")))
EXPERTS = () if IN_ONE else ("gate", "w1", "w2", "w3")
SHARED = ("shared_expert_gate",) if IN_ONE else ("shared_expert_gate", "gate")


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("gpt_neox", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("mixtral", {"q_proj", "k_proj", "v_proj", "o_proj", *EXPERTS}),
        ("qwen2_moe", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", *SHARED}),
        ("mamba", {"in_proj", "x_proj", "dt_proj"}),
    ],
)
def test_all_linear_is_every_layer_but_the_head(family, layers):
    assert adapted(family, ["all-linear"]) == layers


@pytest.mark.parametrize(
    ("family", "choice"),
    [
        *(("phi3", "qkv_proj"), ("gpt2", "c_attn"), ("gpt_neox", "query_key_value"), ("mpt", "Wqkv")),
        *(("deepseek_v3", "q_b_proj,kv_b_proj"), ("mamba", "in_proj"), ("bert", "query,value")),
    ],
)
def test_default_layers_that_a_family_has_not_are_answered_with_its_own(family, choice):
    with pytest.raises(TrntuneError) as caught:
        check_faults(model(family), LoraConfig(name="test"))
    assert f"take lora.target_modules=[{choice}], or [all-linear] for all of them" in str(caught.value)
    assert set(choice.split(",")) <= adapted(family, choice.split(","))


def test_a_misspelt_layer_is_answered_with_the_nearest():
    with pytest.raises(
        TrntuneError, match="no linear layer c_atn: allowed are c_attn, c_proj, c_fc; did you mean c_attn"
    ):
        check_faults(model("gpt2"), LoraConfig(name="test", target_modules=["c_atn"]))


def test_a_layer_that_kernels_read_is_refused_by_name():
    with pytest.raises(TrntuneError, match="out_proj gets no adapter, since this family's kernels read its weight"):
        check_faults(model("mamba"), LoraConfig(name="test", target_modules=["in_proj", "out_proj"]))


def test_a_family_without_layers_of_attention_is_given_all_of_its_own():
    assert own_choice(["up", "down"]) == ["up", "down"]
    assert lora_targets(model("llama")) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
