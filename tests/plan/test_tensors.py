"""Counts of parameters: the plan's are those of the real modules, and add up over the ranks."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig, PretrainedConfig, Qwen3Config

from launcher.architecture.parameters import count, stage_of
from launcher.architecture.tensors import Tensor, base_tensors, modules
from launcher.checks.training import check_lora
from launcher.checks.validate import fill_architecture, problems
from launcher.config.help import choices
from launcher.config.schema import ArchitectureConfig
from launcher.paths import CONF
from tests.launcher.conftest import single
from trainer.models.adapt import check_adapted_as_planned, check_faults, modules_of, peft_config
from trainer.models.load import count_parameters
from trainer.probes.model import describe

MODELS = [name for name, file in choices([CONF])["model"].items() if "\narchitecture:" in file.read_text()]
ADAPTERS = ["r16_qv", "r16_all_linear", "r64_all_linear", "dora", "rslora"]


def config_of(*arguments):
    return single(*arguments).config


def on_meta(model: str, *arguments: str):
    """transformers' model with the facts of conf/model."""
    facts = config_of(f"model={model}", *arguments).model.architecture
    config = {"llama": LlamaConfig, "granite": GraniteConfig, "qwen3": Qwen3Config}[facts.family](
        hidden_size=facts.hidden_size,
        intermediate_size=facts.intermediate_size,
        num_hidden_layers=facts.layers,
        num_attention_heads=facts.heads,
        num_key_value_heads=facts.kv_heads,
        head_dim=facts.head_dim,
        vocab_size=facts.vocab_size,
        tie_word_embeddings=facts.tied_embeddings,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("model", MODELS)
def test_every_shipped_model_has_the_tensors_of_transformers(model):
    config = config_of(f"model={model}", "method=full")
    real = on_meta(model)
    counts = count(config, config.model.architecture)
    assert counts.total == counts.trainable == sum(p.numel() for p in real.parameters())
    assert config.model.parameters in (None, counts.total)
    ours = {tensor.name: tensor.shape for tensor in base_tensors(config.model.architecture)}
    assert ours == {name: tuple(p.shape) for name, p in real.named_parameters()}


def local(kind: type[PretrainedConfig], directory: Path, switches: dict[str, bool], *arguments: str):
    """The configuration of a run of a small model in ``directory``, its facts filled in, and the model on meta."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 99}
    settings = kind(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=16, **switches)
    settings.save_pretrained(directory)
    config = config_of("model=local", f"model.path={directory}", *arguments)
    fill_architecture(config)
    with torch.device("meta"):
        return config, AutoModelForCausalLM.from_config(settings)


KINDS = [LlamaConfig, GraniteConfig, Qwen3Config]
SWITCHES = [{"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": True}]


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_local_models_own_switches_are_counted(kind, switches, tmp_path):
    config, real = local(kind, tmp_path, switches, "method=full")
    ours = {tensor.name: tensor.shape for tensor in base_tensors(config.model.architecture)}
    assert ours == {name: tuple(p.shape) for name, p in real.named_parameters()}
    assert count(config, config.model.architecture).total == sum(p.numel() for p in real.parameters())
    assert modules(config.model.architecture) == modules_of(real)


@pytest.mark.parametrize("model", ["llama3_8b", "qwen3_0_6b"])
def test_the_plan_knows_the_names_of_transformers_modules(model):
    assert modules(config_of(f"model={model}").model.architecture) == modules_of(on_meta(model))


ALL = "lora.target_modules=[all-linear]"
BIASED = {"attention_bias": True, "mlp_bias": True}
OF_BIASES = [
    ("lora.bias=all",),
    ("lora.bias=lora_only",),
    ("lora.bias=lora_only", ALL, "lora.exclude_modules=[k_proj,layers.0.self_attn.q_proj]"),
    ("lora.bias=all", "lora.modules_to_save=[layers.1.self_attn.o_proj,lm_head]"),
    ("lora.bias=lora_only", "lora.modules_to_save=[layers.1.self_attn.o_proj,model.norm]"),
    ("lora.modules_to_save=[layers.1.mlp.up_proj]",),
]


@pytest.mark.parametrize("options", OF_BIASES, ids=" ".join)
@pytest.mark.parametrize("kind", KINDS)
def test_biases_are_counted_as_peft_trains_them(kind, options, tmp_path):
    config, base = local(kind, tmp_path, BIASED, *options)
    assert list(check_lora(config)) == []
    described, facts = describe(str(tmp_path), asdict(config.lora)), config.model.architecture
    counts = count(config, facts)
    known = check_faults(base, config.lora)
    with torch.device("meta"):
        real = get_peft_model(base, peft_config(config.lora, known), low_cpu_mem_usage=True)
    assert (counts.total, counts.trainable) == count_parameters(real)
    assert {name: getattr(counts, name) for name in PARTS} == {name: described[name] for name in PARTS}


PARTS = ("total", "trainable", "matmul", "idle", "low_rank", "saved_matmul", "forward_only", "first_layer")


OPTIONS = [
    (f"lora={adapter}",) for adapter in ADAPTERS
] + [
    (ALL,),
    (ALL, "lora.exclude_modules=[down_proj,layers.0.self_attn.q_proj]"),
    (ALL, "lora.layers_to_transform=[1,5]", "lora.rank_pattern={down_proj:4}"),
    ("lora.rank_pattern={q_proj:8,layers.0.self_attn.v_proj:3}", "lora.alpha_pattern={v_proj:2}"),
    ("lora.rank_pattern={.*layers.1\\d.*proj:2}", "lora.use_dora=true"),
    ("lora.target_modules=[model.layers.1.self_attn.q_proj,mlp.up_proj]",),
    ("lora.modules_to_save=[lm_head]",),
    ("lora.modules_to_save=[embed_tokens,model.norm]",),
    ("lora.modules_to_save=[input_layernorm,layers.3.mlp.up_proj]", ALL),
    ("lora.trainable_token_indices=[3,77,5]",),
    ("lora.init_lora_weights=gaussian",),
    ("lora.init_lora_weights=orthogonal",),
]  # fmt: skip


FEW = ("model.architecture.layers=12",)
CASES = [(model, (), options) for model in ("llama3_8b", "qwen3_0_6b", "smollm2_135m") for options in OPTIONS[:5]]
CASES += [(model, FEW, options) for model in ("llama3_8b", "qwen3_0_6b") for options in OPTIONS[5:]]


@pytest.mark.parametrize(
    ("model", "size", "options"), CASES, ids=lambda value: value if isinstance(value, str) else None
)
def test_adapters_have_the_parameters_of_peft(model, size, options):
    config = config_of(f"model={model}", *size, *options)
    assert problems(config) == []
    base = on_meta(model, *size)
    modules = check_faults(base, config.lora)
    with torch.device("meta"):
        real = get_peft_model(base, peft_config(config.lora, modules), low_cpu_mem_usage=True)
    check_adapted_as_planned(real, config.lora, modules)
    counts = count(config, config.model.architecture)
    assert (counts.total, counts.trainable) == count_parameters(real)


@pytest.mark.parametrize(
    ("arguments", "trainable"),
    [
        (["method=full"], 8_030_261_248),
        (["lora=r16_qv"], 6_815_744),
        (["lora=r16_all_linear"], 41_943_040),
        (["lora=r64_all_linear"], 167_772_160),
        (["lora=dora"], 6_979_584),
    ],
)
def test_llama_3_8b_has_the_known_figures(arguments, trainable):
    config = config_of("model=llama3_8b", *arguments)
    assert count(config, config.model.architecture).trainable == trainable


def on_trn1(model: str, *arguments: str):
    return config_of(f"model={model}", "accelerator=trn1_32xlarge", "training.global_batch_size=48", *arguments)


@pytest.mark.parametrize(("tensor", "copies"), [(8, 1), (32, 4)])
def test_tensor_parallel_ranks_hold_a_share_of_each_matrix_and_all_of_each_norm(tensor, copies):
    config = on_trn1("llama3_8b", "method=full", f"parallelism.tensor_parallel={tensor}")
    norms = (2 * 32 + 1) * 4096
    keys_and_values = 32 * 2 * 1024 * 4096
    matrices = 8_030_261_248 - norms + (copies - 1) * keys_and_values  # a KV head lies on four ranks at tp 32
    assert count(config, config.model.architecture).local == (matrices // tensor + norms,)


def test_adapters_are_split_where_their_layer_is():
    config = on_trn1("llama3_8b", "lora=r16_all_linear", "parallelism.tensor_parallel=8")
    whole = 32 * 16 * (3 * 4096 + 4096 + 2 * 4096)  # A of q, k, v; the one A of gate and up; B of o, down
    split = (
        32 * 16 * ((4096 + 1024 + 1024) + 4096 + 2 * 14336 + 14336)
    )  # B of q, k, v; A of o; B of gate, up; A of down
    assert whole + split == 39_845_888
    assert count(config, config.model.architecture).trainable_local == (whole + split // 8,)


def test_pipeline_stages_hold_all_layers_once_with_the_ends_where_they_belong():
    config = on_trn1("llama3_70b", "method=full", "parallelism.tensor_parallel=8", "parallelism.pipeline_parallel=4")
    facts: ArchitectureConfig = config.model.architecture
    first, second, third, last = count(config, facts).local
    vocabulary = 128256 * 8192 // 8
    assert first - second == vocabulary
    assert second == third
    assert last - second == vocabulary + 8192
    norms = (2 * 80 + 1) * 8192
    assert first + second + third + last == (70_553_706_496 - norms) // 8 + norms


def test_a_tied_embedding_lies_on_both_ends_of_a_pipeline():
    config = on_trn1("llama32_1b", "method=full", "parallelism.pipeline_parallel=2", "parallelism.data_parallel=16")
    counts = count(config, config.model.architecture)
    assert sum(counts.local) == counts.total + 128256 * 2048
    assert math.isclose(counts.total, 1_235_814_400)


@pytest.mark.parametrize(
    ("layers", "stages", "sizes"),
    [
        (80, 4, [20, 20, 20, 20]),
        (36, 8, [4, 4, 4, 4, 5, 5, 5, 5]),
        (28, 8, [3, 3, 3, 3, 4, 4, 4, 4]),
        (5, 4, [1, 1, 1, 2]),
    ],
)
def test_layers_that_do_not_divide_make_the_last_stages_longer(layers: int, stages: int, sizes: list[int]) -> None:
    """neuronx_distributed, pipeline/partition.py: create_partitions."""
    held = [stage_of(Tensor("", (1,), layer), layers, stages) for layer in range(layers)]
    assert [held.count(stage) for stage in range(stages)] == sizes
