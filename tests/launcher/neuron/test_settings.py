"""Neuron as seen by the launcher: the environment, what is refused, and which settings give other graphs."""

from __future__ import annotations

import json
import re

import pytest

from launcher.architecture.parameters import count
from launcher.checks.validate import problems
from launcher.config.help import choices
from launcher.config.schema import Config, world_size
from launcher.errors import UsageError
from launcher.neuron.checks import check_trainable
from launcher.neuron.graphs import shapes
from launcher.paths import CONF
from launcher.plan.build import make
from tests.launcher.conftest import single

BASE = ("accelerator=trn1_32xlarge", "model=llama3_8b", "parallelism=trn1_tp8_dp4", "training.precision=bf16")
BLOG = (*BASE, "training.global_batch_size=12", "training.max_length=1024")


FP32 = ("training.precision=fp32", "parallelism.zero_1=false")


def on_neuron(*arguments: str) -> Config:
    return single(*BLOG, *arguments).config


REFUSED = [
    (["parallelism=trn1_tp32_dp1"], "lora.target_modules", "q_proj, k_proj and v_proj (8 key/value heads)"),
    (
        ["parallelism.tensor_parallel=16", "parallelism.data_parallel=2", "lora.target_modules=[k_proj]"],
        "lora.target_modules",
        "tensor_parallel of at most 8",
    ),
    (["lora.target_modules=[gate_proj]"], "lora.target_modules", "both or none"),
    (["lora=dora"], "lora.use_dora", "lora=rslora"),
    (["training.precision=fp32"], "parallelism.zero_1", "optimizer in bf16"),
    (["parallelism.zero_1=false"], "parallelism.zero_1", "master weights"),
    (["parallelism.sequence_parallel=false"], "parallelism.sequence_parallel", "gradient norm 5.49 for 10.45"),
    (
        ["model=qwen3_8b", "method=full", "parallelism.sequence_parallel=false", *FP32],
        "parallelism.sequence_parallel",
        "each rank norms its own heads",
    ),
    (["training.max_length=1020"], "training.max_length", "nearest is 1024"),
    (["model.architecture=null"], "model", "llama, granite and qwen3 only, and this is of none"),
    (["model.architecture.vocab_size=128257"], "parallelism.tensor_parallel", "vocab_size=128257"),
    (["model.architecture.intermediate_size=14340"], "parallelism.tensor_parallel", "intermediate_size=14340"),
    (
        ["model=qwen3_0_6b", "parallelism.pipeline_parallel=2", "parallelism.data_parallel=2"],
        "parallelism.pipeline_parallel",
        "ties embedding and output head",
    ),
    (
        ["parallelism=trn1_tp8_pp4_dp4_4nodes", "model=llama3_70b", "lora.layers_to_transform=[79]"],
        "lora.layers_to_transform",
        "each pipeline stage must have something to train",
    ),
    (
        ["model=llama3_70b", "parallelism.tensor_parallel=4", "parallelism.pipeline_parallel=2"],
        "parallelism.data_parallel",
        "trn1 wants a multiple of 8 replicas in each pipeline stage",
    ),
    (["accelerator.neuron=null"], "accelerator.neuron", "engine neuron needs it"),
    (["accelerator.neuron.cache_dir=/home/me/.cache/graphs"], "accelerator.neuron.cache_dir", "cuts off the rest"),
    (["accelerator.neuron.cache_dir='s3://bucket/graphs'"], "accelerator.neuron.cache_dir", "an address"),
    (["accelerator.neuron.compiler_flags=['--cache_dir=/x']"], "accelerator.neuron.compiler_flags", "use cache_dir"),
    (["accelerator.neuron.compiler_flags=[O1]"], "accelerator.neuron.compiler_flags", "is not --name"),
    (["accelerator.environment=['XLA_USE_BF16=1']"], "accelerator.environment", "training.precision=bf16"),
    (["cluster.environment=['XLA_DOWNCAST_BF16=1']"], "cluster.environment", "master weights and losses too"),
    (["accelerator.environment=['NEURON_CC_FLAGS=-O1']"], "accelerator.environment", "accelerator.neuron"),
    (["accelerator.environment=['NEURON_RT_STOCHASTIC_ROUNDING_EN=0']"], "accelerator.environment", "sets it itself"),
    (["accelerator.environment=[FOO]"], "accelerator.environment", "is not NAME=value"),
]


@pytest.mark.parametrize(("arguments", "key", "piece"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_optimum_neuron_cannot_do_right_is_one_problem(arguments, key, piece, cwd):
    (problem,) = problems(on_neuron(*arguments))
    assert problem.key == key
    assert piece in str(problem)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["method=full"],
        ["lora=r16_all_linear"],
        ["lora=rslora"],
        ["lora.dropout=0.2"],
        ["parallelism=trn1_tp32_dp1", "lora=r16_all_linear"],
        ["parallelism=trn1_tp32_dp1", "lora.target_modules=[o_proj,down_proj]"],
        ["parallelism=trn1_tp32_dp1", "method=full"],
        ["model=qwen3_8b", "parallelism.sequence_parallel=false", *FP32],
        ["method=full", "parallelism.sequence_parallel=false", *FP32],
        ["parallelism=trn1_tp8_pp4_dp4_4nodes", "model=llama3_70b"],
        ["accelerator=trn2_48xlarge", "parallelism=trn2_tp4_dp16", "training.global_batch_size=16"],
        ["training.precision=fp32", "parallelism.zero_1=false"],
        ["accelerator.environment=['NEURON_RT_LOG_LEVEL=INFO']"],
    ],
    ids=str,
)
def test_what_it_can_do_is_not_refused(arguments, cwd):
    assert problems(on_neuron(*arguments)) == []


GRANITE = {
    **{"model_type": "granite", "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 49155, "tie_word_embeddings": True},
}


def _parameters_of_granite() -> int:
    import torch
    from transformers import AutoModelForCausalLM, GraniteConfig

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(GraniteConfig(**GRANITE)).parameters())


def local(tmp_path, facts) -> tuple[str, ...]:
    (tmp_path / "config.json").write_text(json.dumps(facts))
    return ("model=local", f"model.path={tmp_path}", *BLOG[:1], *BLOG[2:])


def test_granite_has_its_ends_whole_on_every_rank(tmp_path, cwd):
    config = single(*local(tmp_path, GRANITE)).config
    assert problems(config) == []
    counts = count(config, config.model.architecture)
    ends, norms = 49155 * 2048, (2 * 40 + 1) * 2048
    adapter = counts.adapter
    assert counts.total == _parameters_of_granite()
    held = (counts.total - ends - norms) // 8 + ends + norms
    assert held < counts.local[0] < held + adapter
    check_trainable(config)
    (problem,) = problems(single(*local(tmp_path, GRANITE), "parallelism=trn1_tp8_pp4_dp4_4nodes").config)
    assert "no pipeline for granite" in str(problem)


@pytest.mark.parametrize("accelerator", ["trn1_32xlarge", "trn2_48xlarge_native"])
def test_graphs_that_each_node_would_compile_for_itself_are_refused_on_a_cluster(accelerator, cwd, monkeypatch):
    monkeypatch.delenv("TRNTUNE_CACHE", raising=False)
    base = (f"accelerator={accelerator}", "experiment=tiny")
    with pytest.raises(UsageError, match=r"^cluster.cache_dir=null: compiled .* of each node"):
        check_trainable(single(*base, "cluster=slurm").config)
    key = "accelerator.torch_neuron" if "native" in accelerator else "accelerator.neuron"
    for shared in ("cluster.cache_dir=/fsx/trntune", f"{key}.cache_dir=/fsx/graphs"):
        check_trainable(single(*base, "cluster=slurm", shared).config)
    check_trainable(single(*base).config)
    monkeypatch.setenv("TRNTUNE_CACHE", "/fsx/cache")
    check_trainable(single(*base, "cluster=slurm").config)
    if "native" not in accelerator:
        with pytest.raises(UsageError, match=r"^/fsx/j.d/cache/neuron: optimum-neuron reads"):
            check_trainable(single(*base, "cluster=slurm", "cluster.cache_dir=/fsx/j.d").config)


def test_the_plan_says_what_would_be_refused(cwd, monkeypatch):
    monkeypatch.delenv("TRNTUNE_CACHE", raising=False)
    piece = "it would be refused: cluster.cache_dir=null"
    assert [note for note in make(on_neuron("cluster=slurm")).notes if note.startswith(piece)]
    assert not [note for note in make(on_neuron()).notes if note.startswith("it would be refused")]


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, "this is mistral"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "this is a qwen3 model with a window"),
    ],
)
@pytest.mark.parametrize("accelerator", ["trn1_32xlarge", "trn2_48xlarge"])
def test_other_families_are_refused_by_name(facts, name, accelerator, tmp_path, cwd):
    config = single(*local(tmp_path, {**GRANITE, **facts}), f"accelerator={accelerator}").config
    found = [problem for problem in problems(config) if problem.key == "model"]
    assert name in str(found[0])


def test_every_layout_for_trainium_fills_its_instances_with_a_model_it_fits(cwd):
    names = sorted(name for name in choices([CONF])["parallelism"] if name.startswith("trn"))
    assert len(names) >= 8
    for name in names:
        hardware = "trn1_32xlarge" if name.startswith("trn1") else "trn2_48xlarge"
        config = single(
            f"accelerator={hardware}", f"parallelism={name}", "model=llama3_70b", "method=full",
            "training.precision=bf16", "training.global_batch_size=128",
        ).config  # fmt: skip
        assert problems(config) == [], name
        nodes = re.search(r"_(\d+)nodes$", name)
        assert world_size(config) == config.accelerator.devices_per_instance * int(nodes[1] if nodes else 1)
        sizes = "".join(
            f"_{short}{size}"
            for short, size in (
                ("tp", config.parallelism.tensor_parallel),
                ("pp", config.parallelism.pipeline_parallel),
                ("dp", config.parallelism.data_parallel),
            )
            if short != "pp" or size > 1
        )
        assert sizes in name


@pytest.mark.parametrize("name", ["XLA_USE_BF16", "XLA_DOWNCAST_BF16"])
def test_a_cast_that_the_shell_asks_for_is_refused_on_neuron_alone(name, cwd, monkeypatch):
    monkeypatch.setenv(name, "1")
    (problem,) = problems(on_neuron())
    assert f"unset {name}" in str(problem)
    assert problems(single().config) == []


def test_other_hardware_has_no_compiler(cwd):
    (problem,) = problems(single("stages=[fetch,compile,train]").config)
    assert "accelerator=cpu compiles no graphs" in str(problem)
    assert single().config.stages == ["fetch", "train"]
    assert on_neuron().stages == ["fetch", "compile", "train"]
    assert single(*BLOG, "stages=[fetch,train]").config.stages == ["fetch", "train"]


@pytest.mark.parametrize(
    ("arguments", "trainable"),
    [
        (["lora=r16_qv"], 6_815_744),
        (["lora=r16_all_linear"], 39_845_888),
        (["lora=r16_all_linear", "parallelism=trn1_tp32_dp1"], 35_651_584),
        (["lora=r16_all_linear", "accelerator=cpu", "parallelism=single"], 41_943_040),
    ],
)
def test_a_fused_layer_has_one_a(arguments, trainable, cwd):
    config = on_neuron(*arguments)
    assert config.model.architecture is not None
    assert count(config, config.model.architecture).trainable == trainable


def test_lora_settings_do_not_count_in_full_fine_tuning(cwd):
    assert shapes(on_neuron("method=full")) == shapes(on_neuron("method=full", "lora.r=8"))
