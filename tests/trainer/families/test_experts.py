"""Mixtures of experts: the router's auxiliary loss as transformers has it, and what a token goes through."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig

from launcher.config.schema import LoraConfig as Adapter
from launcher.errors import TrntuneError
from trainer.data.collate import Collator
from trainer.data.tokenize import IGNORE, Example
from trainer.families.experts import idle_parameters
from trainer.families.small import small_config, small_model
from trainer.libraries.transformers_versions import parts_of_parameters
from trainer.models.adapt import check_faults
from trainer.models.attention import DOCUMENT_ATTENTION
from trainer.models.causal_lm import MODEL_INPUTS, CausalLMLoss


def mixtral(**changes):
    config = small_config(AutoConfig.for_model("mixtral", sliding_window=None, **changes), 64)
    return small_model(config, DOCUMENT_ATTENTION)


def test_the_routers_loss_is_trained_and_not_evaluated():
    model = mixtral(output_router_logits=True, router_aux_loss_coef=0.5)
    ids = torch.randint(3, 90, (30,), generator=torch.Generator().manual_seed(0)).tolist()
    batch = Collator(40, pad_token_id=0)([[Example(ids, [IGNORE] * 4 + ids[4:])]])
    inputs = {name: batch[name] for name in MODEL_INPUTS}
    labels = torch.tensor([[IGNORE] * 4 + ids[4:]])
    module = CausalLMLoss(model)
    model.set_attn_implementation("eager")
    theirs = model(torch.tensor([ids]), labels=labels)
    targets = int((labels != IGNORE).sum())
    model.set_attn_implementation(DOCUMENT_ATTENTION)
    assert float(theirs.aux_loss) > 0.1
    torch.testing.assert_close(module.train()(**inputs) / targets, theirs.loss, rtol=1e-5, atol=1e-5)
    plain = theirs.loss - 0.5 * theirs.aux_loss
    torch.testing.assert_close(module.eval()(**inputs) / targets, plain, rtol=1e-5, atol=1e-5)


def test_without_being_asked_for_there_is_no_routers_loss():
    model = mixtral()
    assert CausalLMLoss(model).router_coefficient == 0.0


@pytest.mark.parametrize(("family", "experts", "each"), [("mixtral", 4, 3 * 64 * 96), ("llama", 0, 0)])
def test_idle_parameters_are_those_of_the_experts_that_are_not_chosen(family, experts, each):
    model = small_model(small_config(AutoConfig.for_model(family), 64), "eager")
    assert idle_parameters(model, model.config) == model.config.num_hidden_layers * (experts // 2) * each


@pytest.mark.parametrize("family", ["gpt_oss", "granitemoe", "llama4_text", "dbrx"])
def test_experts_in_one_parameter_are_found(family):
    settings = {"attn_config": {"clip_qkv": 8.0, "kv_n_heads": 8, "rope_theta": 1e4}} if family == "dbrx" else {}
    model = small_model(small_config(AutoConfig.for_model(family, **settings), 64), "eager")
    idle, total = idle_parameters(model, model.config), sum(p.numel() for p in model.parameters())
    assert total / 10 < idle < total


def test_an_adapter_on_experts_in_one_parameter_is_refused():
    model = small_model(small_config(AutoConfig.for_model("gpt_oss"), 64), "eager")
    with pytest.raises(TrntuneError, match="gate_up_proj is one parameter of all experts, which gets no adapter here"):
        check_faults(model, Adapter(name="test", target_modules=["q_proj", "gate_up_proj"]))


def test_an_adapter_on_lists_of_experts_trains_where_there_are_such():
    listed = mixtral()
    if parts_of_parameters(listed):  # of transformers 5: tests/trainer/models/test_adapter_options.py has its refusal
        assert not any(isinstance(module, torch.nn.ModuleList) for module in listed.model.layers[0].mlp.modules())
        return
    check_faults(listed, Adapter(name="test", target_modules=["w1", "w2", "w3"]))
    adapted = get_peft_model(listed, LoraConfig(target_modules=["w1", "w2", "w3"], task_type="CAUSAL_LM"))
    ids = torch.randint(3, 90, (30,)).tolist()
    batch = Collator(40, pad_token_id=0)([[Example(ids, ids)]])
    CausalLMLoss(adapted)(**{name: batch[name] for name in MODEL_INPUTS}).backward()
    assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_B" in name)
