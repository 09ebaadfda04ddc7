"""What an adapter reaches in mixtures of experts, and where the installed peft trains what others don't."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import get_peft_model

from launcher.errors import TrntuneError
from tests.trainer.models.test_adapter_options import ALL, config_of, small
from trainer.libraries.transformers_versions import parts_of_parameters
from trainer.models.adapt import check_adapted_as_planned, check_faults, modules_of, peft_config


def targets_of(model) -> str:
    """Layers in a mixture's experts, where transformers has them as layers: since 5 they are one parameter."""
    return "q_proj" if parts_of_parameters(model) else "w1,q_proj"


def test_layers_to_transform_are_decoder_layers_of_a_mixture_of_experts_too():
    model = small("mixtral")
    targets = targets_of(model)
    lora = config_of(Path("x"), f"lora.target_modules=[{targets}]", "lora.layers_to_transform=[1]").lora
    modules = check_faults(model, lora)
    peft_model = get_peft_model(model, peft_config(lora, modules))
    check_adapted_as_planned(peft_model, lora, modules)
    names = peft_model.base_model.targeted_module_names
    assert len(names) == 1 + (model.config.num_local_experts if "w1" in targets else 0)
    assert all(name.startswith("model.layers.1.") for name in names)


def test_what_peft_makes_otherwise_is_refused():
    model = small("mixtral")
    lora = config_of(Path("x"), "lora.target_modules=[q_proj]", "lora.layers_to_transform=[1]").lora
    modules, theirs = modules_of(model), peft_config(lora, modules_of(model))
    theirs.layers_to_transform = [0]
    layers = (f"model.layers.{number}.self_attn.q_proj" for number in (0, 1))
    with pytest.raises(TrntuneError, match=f"peft would train {', '.join(layers)} otherwise than the settings say"):
        check_adapted_as_planned(get_peft_model(model, theirs), lora, modules)


@pytest.mark.skipif(bool(parts_of_parameters(small("mixtral"))), reason="experts have no numbers in transformers 5")
def test_an_experts_number_that_peft_takes_for_the_layers_is_refused():
    model = small("mixtral")
    lora = config_of(Path("x"), "lora.target_modules=[w1]", "lora.layers_to_transform=[1]").lora
    modules, theirs = modules_of(model), peft_config(lora, modules_of(model))
    theirs.layers_pattern = None  # as peft finds the layer by itself
    with pytest.raises(
        TrntuneError, match=r"peft would train model.layers.0.block_sparse_moe.experts.1.w1, model.layers.1"
    ):
        check_adapted_as_planned(get_peft_model(model, theirs), lora, modules)


@pytest.mark.parametrize(
    ("family", "target", "piece"),
    [
        ("mixtral", "w1", "w1 of each expert is part of one parameter of all experts here, which gets no adapter"),
        (
            "deepseek_v3",
            "up_proj",
            "up_proj gets no adapter, since peft takes every layer of that name for the",
        ),
    ],
)
def test_layers_of_single_experts_are_refused_where_the_library_has_none(family, target, piece):
    """And what peft 0.21 takes for them: of DeepSeek's dense layers the adapter would be lost."""
    model, lora = small(family), config_of(Path("x"), f"lora.target_modules=[{target}]").lora
    if not parts_of_parameters(model):
        check_faults(model, lora)
        return
    with pytest.raises(TrntuneError, match=f"{piece}.*: allowed are .*o_proj; take lora.target_modules="):
        check_faults(model, lora)
    everything = config_of(Path("x"), ALL).lora
    modules = check_faults(model, everything)
    assert not any(name.endswith(target) for name in modules.linear)
    check_adapted_as_planned(get_peft_model(model, peft_config(everything, modules)), everything, modules)


@pytest.mark.parametrize("family", ["gpt_oss", "bamba", "gpt2"])
def test_biases_are_those_that_the_installed_peft_trains(family):
    model, lora = small(family), config_of(Path("x"), ALL, "lora.bias=all").lora
    modules = modules_of(model)
    trained = get_peft_model(model, peft_config(lora, modules))
    found = {name for name, p in trained.base_model.model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert {name.replace(".base_layer.", ".") for name in found} == modules.biases
