"""Neuron as seen by the launcher: the environment, what is refused, and which settings give other graphs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest

from launcher.architecture.tensors import count
from launcher.checks.validate import problems
from launcher.config.help import choices
from launcher.config.schema import Config, world_size
from launcher.errors import UsageError
from launcher.executors.local import processes_here
from launcher.jobs.job import job_of
from launcher.jobs.torchrun import stage_command
from launcher.jobs.variables import variables
from launcher.neuron.checks import refuse_untrainable
from launcher.neuron.graphs import differences, directory_name, shapes
from launcher.neuron.variables import graph_directory
from launcher.paths import CONF
from tests.launcher.conftest import single

BASE = ("accelerator=trn1_32xlarge", "model=llama3_8b", "parallelism=trn1_tp8_dp4", "training.precision=bf16")
BLOG = (*BASE, "training.global_batch_size=12", "training.max_length=1024")


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
    (["training.max_length=1020"], "training.max_length", "nearest is 1024"),
    (["model.architecture=null"], "model", "llama, granite and qwen3 only, and this is of none"),
    (["model.architecture.vocab_size=128257"], "parallelism.tensor_parallel", "vocab_size=128257"),
    (["model.architecture.intermediate_size=14340"], "parallelism.tensor_parallel", "intermediate_size=14340"),
    (
        ["model=qwen3_0_6b", "parallelism.pipeline_parallel=2", "parallelism.data_parallel=2"],
        "parallelism.pipeline_parallel",
        "ties embedding and output head",
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


def test_granite_is_planned_with_its_ends_whole_on_every_rank_and_not_trained(tmp_path, cwd):
    config = single(*local(tmp_path, GRANITE)).config
    assert problems(config) == []
    counts = count(config, config.model.architecture)
    ends, norms = 49155 * 2048, (2 * 40 + 1) * 2048
    adapter = counts.adapter
    assert counts.total == _parameters_of_granite()
    held = (counts.total - ends - norms) // 8 + ends + norms
    assert held < counts.local[0] < held + adapter
    with pytest.raises(UsageError, match="granite can be planned, not trained"):
        refuse_untrainable(config)
    (problem,) = problems(single(*local(tmp_path, GRANITE), "parallelism=trn1_tp8_pp4_dp4_4nodes").config)
    assert "no pipeline for granite" in str(problem)


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


def test_the_environment_is_what_the_configuration_says(cwd, monkeypatch):
    monkeypatch.delenv("TRNTUNE_CACHE", raising=False)
    config = on_neuron(
        "accelerator.neuron.cache_dir=/shared/graphs", "accelerator.neuron.compiler_flags=['--model-type=transformer']",
        "accelerator.neuron.fuse_softmax=false", "accelerator.neuron.inflight_requests=7",
        "accelerator.environment=['NEURON_RT_LOG_LEVEL=INFO']", "cluster.environment=['A=1']",
    )  # fmt: skip
    graphs = f"/shared/graphs/{directory_name(config)}"
    assert variables("train", config) == variables("compile", config) == {
        "A": "1",
        "NEURON_CC_FLAGS": f"--model-type=transformer --cache_dir={graphs}",
        "NEURON_COMPILE_CACHE_URL": graphs,
        "NEURON_FUSE_SOFTMAX": "0",
        "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": "7",
        "MALLOC_ARENA_MAX": "64",
        "NEURON_RT_LOG_LEVEL": "INFO",
    }  # fmt: skip
    assert variables("merge", config) == {"A": "1"}
    assert variables("train", single("accelerator=cuda").config) == {}


@pytest.mark.parametrize(
    ("cache", "root"),
    [
        (None, "/var/tmp/trntune-neuron"),
        ("/fsx/cache", "/fsx/cache/neuron"),
        ("/home/me/.cache/trntune", "/var/tmp/trntune-neuron"),
    ],
)
def test_graphs_lie_in_the_projects_cache_where_its_path_can_be_read(cache, root, cwd, monkeypatch):
    monkeypatch.delenv("TRNTUNE_CACHE", raising=False)
    if cache:
        monkeypatch.setenv("TRNTUNE_CACHE", cache)
    assert str(graph_directory(on_neuron()).parent) == root


def test_optimum_neuron_reads_the_cache_directory_as_it_is_written(cwd):
    """The pattern of optimum/neuron/utils/cache_utils.py, from the installed file."""
    from importlib.metadata import files

    (source,) = [file for file in files("optimum-neuron") or [] if str(file) == "optimum/neuron/utils/cache_utils.py"]
    pattern = re.search(r're\.search\(r"(--cache_dir=[^"]*)", neuron_cc_flags\)', source.locate().read_text())
    assert pattern
    config = on_neuron("cluster=hyperpod")
    found = re.search(pattern[1], variables("train", config)["NEURON_CC_FLAGS"])
    assert found
    assert found[1] == str(graph_directory(config))


def test_efa_is_for_more_than_one_instance_and_logical_cores_for_trn2(cwd):
    many = on_neuron("parallelism=trn1_tp8_dp16_4nodes", "training.global_batch_size=16")
    assert variables("train", many)["FI_PROVIDER"] == "efa"
    assert "FI_PROVIDER" not in variables("train", on_neuron())
    trn2 = on_neuron("accelerator=trn2_48xlarge", "parallelism=trn2_tp4_dp16")
    assert variables("train", trn2)["NEURON_LOGICAL_NC_CONFIG"] == "2"


def test_torchrun_starts_every_process_of_a_layout(cwd, tmp_path):
    config = on_neuron()
    train, compiling, fetch = (job_of(stage, config) for stage in ("train", "compile", "fetch"))
    assert processes_here(train) == 32
    assert processes_here(compiling) == processes_here(fetch) == 1
    assert train.elastic
    assert not job_of("train", single().config).elastic
    assert "--nproc-per-node=1" in stage_command("train", tmp_path, 1, elastic=True)
    assert "torch.distributed.run" not in stage_command("train", tmp_path, 1)


CHANGES = [
    ("training.max_length=2048", "row length 1024 -> 2048"),
    ("training.global_batch_size=24", "accumulation 3 -> 6"),
    ("lora.r=8", "LoRA rank 16 -> 8"),
    ("dataset.packing=false", "packing true -> false"),
    ("parallelism.sequence_parallel=false", "sequence parallel true -> false"),
    ("accelerator.neuron.compiler_flags=['-O1']", "compiler flags [--model-type=transformer,--retry_failed_compilation]"
     " -> [-O1]"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=lambda value: value[:40])
def test_a_setting_that_changes_the_graphs_is_named_and_has_a_directory_of_its_own(change, said, cwd):
    before, after = on_neuron(), on_neuron(change)
    assert differences(shapes(before), shapes(after)) == [said]
    assert directory_name(before) != directory_name(after)
    assert re.fullmatch(r"[\w-]+", directory_name(after))


@pytest.mark.parametrize(
    "change", ["seed=3", "method.learning_rate=1e-5", "training.max_steps=9", "tracking.log_every=5", "output_dir=x"]
)
def test_a_setting_that_does_not_is_not(change, cwd):
    assert shapes(on_neuron()) == shapes(on_neuron(change))
    assert asdict(on_neuron()) != asdict(on_neuron(change))


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


def test_the_plan_shows_environment_and_jobs(answer, cwd):
    done = answer(*BLOG, "plan=true", "dataset=dolly15k", "accelerator.neuron.cache_dir=/g")
    assert done.returncode == 0, done.stderr
    for piece in (
        "compile: neuron_parallel_compile",
        "NEURON_FUSE_SOFTMAX=1",
        "MALLOC_ARENA_MAX=64",
        "--cache_dir=/g/",
    ):
        assert piece in done.stdout
    assert "XLA_USE_BF16" not in done.stdout
