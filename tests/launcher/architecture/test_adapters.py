"""peft's options of the lora group: what can't work, or would be another adapter in silence, is one line."""

from __future__ import annotations

import pytest

from launcher.architecture.tensors import first_reached
from launcher.checks.validate import problems
from launcher.config.overrides import expand
from launcher.neuron.graphs import shapes
from launcher.plan.build import preflight
from launcher.plan.show import beside
from launcher.run_dir.config_diff import changes, fixed_part
from launcher.run_dir.layout import RunDir
from launcher.run_dir.provenance import write_records
from tests.launcher.conftest import composition, single

REFUSED = [
    (["lora.target_modules=[all-linear,q_proj]"], "lora.target_modules", "write lora.target_modules=[all-linear]"),
    (["lora.exclude_modules=[down_proj]"], "lora.exclude_modules", "none of the 60 layers that get an adapter"),
    (["lora.exclude_modules=[q_prog]"], "lora.exclude_modules", "did you mean q_proj?"),
    (["lora.exclude_modules=[q_proj]"], "lora.target_modules", "no layer is left for q_proj"),
    (["lora.layers_to_transform=[30]"], "lora.layers_to_transform", "they are 0 to 29"),
    (["lora.layers_to_transform=[-1]"], "lora.layers_to_transform", "must be >= 0"),
    (
        ["lora.target_modules=[model.layers.0.self_attn.q_proj]", "lora.layers_to_transform=[1]"],
        "lora.layers_to_transform",
        "which is named in full, whatever layers are asked for",
    ),
    (["lora.modules_to_save=[norm]"], "lora.modules_to_save", "61 of them: model.layers.0.input_layernorm"),
    (["lora.modules_to_save=[norm]"], "lora.modules_to_save", "name those that are meant in full, such as model.norm"),
    (["lora.modules_to_save=[mlp]"], "lora.modules_to_save", "model.layers.0.mlp is no single layer with weights"),
    (["lora.modules_to_save=[lmhead]"], "lora.modules_to_save", "did you mean lm_head?"),
    (["lora.modules_to_save=['']"], "lora.modules_to_save", "has no module"),
    (["lora.modules_to_save=[v_proj]"], "lora.target_modules", "no layer is left for v_proj"),
    (["lora.rank_pattern={qproj:8}"], "lora.rank_pattern", "stands for none of the 60 layers"),
    (["lora.rank_pattern={down_proj:8}"], "lora.rank_pattern", "stands for none of the 60 layers"),
    (["lora.rank_pattern={q_proj:0}"], "lora.rank_pattern", "{q_proj:0}: must be >= 1"),
    (["lora.alpha_pattern={*q:1}"], "lora.alpha_pattern", "*q is no regular expression"),
    (
        ["lora.alpha_pattern={q_proj:8,layers.0.self_attn.q_proj:4}"],
        "lora.alpha_pattern",
        "model.layers.0.self_attn.q_proj is 8 by q_proj and 4 by layers.0.self_attn.q_proj",
    ),
    (["lora.trainable_token_indices=[1,49152]"], "lora.trainable_token_indices", "they are 0 to 49151"),
    (["lora.trainable_token_indices=[1,1]"], "lora.trainable_token_indices", "1 is listed twice"),
    (
        ["lora.trainable_token_indices=[1]", "lora.modules_to_save=[embed_tokens]"],
        "lora.trainable_token_indices",
        "modules_to_save trains all of model.embed_tokens",
    ),
    (
        ["lora.trainable_token_indices=[1]", "lora.modules_to_save=[lm_head]"],
        "lora.trainable_token_indices",
        "all of lm_head, which is tied",
    ),
    (["lora.bias=all"], "lora.bias", "llama has no biases"),
    (["lora.bias=lora_only"], "lora.bias", "no layer that gets an adapter has a bias"),
    (["lora.bias=some"], "lora.bias", "none, lora_only, all"),
    (["lora.init_lora_weights=pissa_niter_16"], "lora.init_lora_weights", "off the base's weights"),
    (["lora.init_lora_weights=olora"], "lora.init_lora_weights", "off the base's weights"),
    (["lora.init_lora_weights=corda"], "lora.init_lora_weights", "made from activations of the data"),
    (["lora.init_lora_weights=eva"], "lora.init_lora_weights", "peft begins as with true, and says nothing"),
    (["lora.init_lora_weights=loftq"], "lora.init_lora_weights", "quantizes the base"),
    (["lora.init_lora_weights=false"], "lora.init_lora_weights", "nor eval_loss_before be its loss"),
    (["lora.init_lora_weights=gausian"], "lora.init_lora_weights", "take one of true, gaussian, orthogonal"),
    (
        ["lora.init_lora_weights=orthogonal", "lora.rank_pattern={q_proj:7}"],
        "lora.init_lora_weights",
        "needs even ranks, and 7 is one",
    ),
]


@pytest.mark.parametrize(("arguments", "key", "piece"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_would_be_another_adapter_is_one_problem(arguments, key, piece, cwd):
    (problem,) = problems(single(*arguments).config)
    assert problem.key == key
    assert piece in str(problem)


ON_NEURON = (
    *("accelerator=trn1_32xlarge", "model=llama3_8b", "parallelism=trn1_tp8_dp4", "training.precision=bf16"),
    *("training.global_batch_size=12", "training.max_length=1024"),
)


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("lora.rank_pattern={q_proj:8}", "lora.rank_pattern"),
        ("lora.alpha_pattern={q_proj:8}", "lora.alpha_pattern"),
        ("lora.exclude_modules=[layers.0.self_attn.q_proj]", "lora.exclude_modules"),
        ("lora.modules_to_save=[lm_head]", "lora.modules_to_save"),
        ("lora.trainable_token_indices=[1]", "lora.trainable_token_indices"),
        ("lora.init_lora_weights=orthogonal", "lora.init_lora_weights"),
        ("lora.target_modules=[self_attn.q_proj]", "lora.target_modules"),
    ],
)
def test_what_optimum_neuron_does_not_pass_on_is_refused_there_alone(argument, key, cwd):
    (problem,) = problems(single(*ON_NEURON, argument).config)
    assert problem.key == key
    assert "optimum-neuron" in str(problem) or "fused" in str(problem)
    assert problems(single("model=llama3_8b", argument).config) == []


def test_what_optimum_neuron_passes_on_counts_there_and_gives_other_graphs(cwd):
    config = single(*ON_NEURON, *expand(["lora.target_modules=all-linear"]), "lora.layers_to_transform=[3,31]").config
    assert problems(config) == []
    assert preflight(config, config.model.architecture).parameters.trainable == 39_845_888 * 2 // 32
    assert shapes(config)["LoRA decoder layers"] == [3, 31]
    without = shapes(single(*ON_NEURON).config)
    assert "LoRA decoder layers" not in without
    assert without["architecture"].keys().isdisjoint({"attention_bias", "mlp_bias"})  # as before they were facts
    assert problems(single(*ON_NEURON, "lora.init_lora_weights=gaussian").config) == []


def test_a_mapping_is_swept_recorded_and_read_back(cwd, tmp_path):
    found = composition("-m", "lora.rank_pattern={q_proj:8,layers.0.self_attn.v_proj:2},{q_proj:4}")
    assert [run.config.lora.rank_pattern for run in found.runs] == [
        {"q_proj": 8, "layers.0.self_attn.v_proj": 2},
        {"q_proj": 4},
    ]
    assert found.runs[0].overrides == ("lora.rank_pattern={q_proj:8,layers.0.self_attn.v_proj:2}",)
    run, run_dir = found.runs[0], RunDir(tmp_path)
    run_dir.hydra.mkdir(parents=True)
    write_records(run_dir, run.config, run.hydra, run.overrides)
    assert run_dir.load_config() == run.config
    assert [change.key for change in changes(run.config, found.runs[1].config)] == [
        "lora.rank_pattern.q_proj",
        "lora.rank_pattern.layers.0.self_attn.v_proj",
    ]


def test_checkpoints_of_before_the_options_are_still_ones_of_this_run(cwd):
    plain = fixed_part(single().config)
    later = ("lora.bias", "lora.init_lora_weights", "model.architecture.attention_bias", "model.architecture.mlp_bias")
    assert not [key for key in plain if key in later]
    assert all(plain[key] is None for key in ("lora.modules_to_save", "lora.layers_to_transform"))
    assert fixed_part(single("lora.bias=all").config)["lora.bias"] == "all"


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        ((), 0),
        (("lora.layers_to_transform=[4,20]",), 4),
        (("lora.layers_to_transform=[20]", "lora.modules_to_save=[model.norm,lm_head]"), 20),
        (("lora.layers_to_transform=[20]", "lora.modules_to_save=[embed_tokens]"), 0),
        (("lora.layers_to_transform=[20]", "lora.modules_to_save=[layers.7.input_layernorm]"), 7),
        (("lora.layers_to_transform=[20]", "lora.trainable_token_indices=[5]"), 0),
    ],
    ids=str,
)
def test_the_backward_pass_ends_where_nothing_below_is_trained(arguments, first, cwd):
    config = single(*arguments).config
    facts = config.model.architecture
    assert first_reached(facts, config.lora) == first
    parameters = preflight(config, facts).parameters
    assert parameters.forward_only == first * (576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * 1536 + 2 * 576)


def test_the_plan_names_what_is_trained_in_full(cwd):
    config = single("lora.modules_to_save=[model.norm,lm_head]", "lora.rank_pattern={q_proj:4}").config
    assert beside(preflight(config, config.model.architecture)) == "model.norm, lm_head"
    config = single("lora.modules_to_save=[input_layernorm]", "lora.trainable_token_indices=[5,9]").config
    shown = beside(preflight(config, config.model.architecture))
    assert shown.startswith("model.layers.0.input_layernorm, model.layers.1.input_layernorm")
    assert shown.endswith(" and 26 more, 2 rows of the embedding")
    assert beside(preflight(single().config, config.model.architecture)) == ""
