"""What optimum-neuron 0.4.5 can't train, or would train wrongly without a word. Names in brackets are its source files,
below optimum/neuron/; docs/trainium.md has the same list with what was seen."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.architecture.adapters import is_all_linear, listed
from launcher.architecture.family_table import FAMILIES, GATE_UP, QKV
from launcher.architecture.tensors import linear_layers
from launcher.checks.diagnostic import Check, Diagnostic
from launcher.config.schema import Config, LoraConfig, on_torch_neuron, world_size
from launcher.errors import UsageError
from launcher.jobs.cluster_variables import project_cache
from launcher.jobs.executor import is_submitted
from launcher.jobs.variables import COMPILE, ON_ACCELERATOR
from launcher.model_dir.config_json import family_of
from launcher.neuron.graphs import fuses_qkv
from launcher.neuron.variables import CACHE_PATH, DERIVED, FALLBACK_CACHE, cache_root
from launcher.torch_neuron.checks import check_torch_neuron, check_variable
from launcher.torch_neuron.variables import FALLBACK_CACHE as NATIVE_FALLBACK
from launcher.torch_neuron.variables import cache_directory

_ASSIGNMENT = r"[A-Za-z_][A-Za-z0-9_]*=.*"
# Deprecated since Neuron 2.23 (AWS: "Announcing end of support for XLA_USE_BF16 and XLA_DOWNCAST_BF16").
CASTS = ("XLA_USE_BF16", "XLA_DOWNCAST_BF16")
# Set by optimum-neuron itself, from its training arguments [accelerate/utils/dataclasses.py].
OVERWRITTEN = ("NEURON_RT_STOCHASTIC_ROUNDING_EN",)


def check_environment(config: Config) -> Iterator[Diagnostic]:
    """Lists of variables are NAME=value, and none takes the place of a key of its own."""
    for key, settings in (
        ("cluster.environment", config.cluster.environment),
        ("accelerator.environment", config.accelerator.environment),
    ):
        for setting in settings:
            if not re.fullmatch(_ASSIGNMENT, setting, re.DOTALL):
                yield Diagnostic(key, setting, "is not NAME=value", "write it so")
            elif config.accelerator.neuron is not None:
                yield from _check_variable(key, setting)
            elif config.accelerator.torch_neuron is not None:
                yield from check_variable(key, setting)


def _check_variable(key: str, setting: str) -> Iterator[Diagnostic]:
    name = setting.partition("=")[0]
    if name in CASTS:
        yield Diagnostic(key, setting, *_CAST)
    elif name in OVERWRITTEN:
        yield Diagnostic(key, setting, "optimum-neuron sets it itself: on with training.precision=bf16", "leave it out")
    elif name in DERIVED:
        yield Diagnostic(key, setting, f"{name} is made from accelerator.neuron", "set accelerator.neuron.* instead")


_CAST = (
    "it makes every fp32 tensor bf16 behind the program's back, master weights and losses too, and AWS has ended it",
    "take training.precision=bf16",
)


def check_shell(config: Config) -> Iterator[Diagnostic]:
    """A variable of the shell would reach the processes, and the plan would not show it."""
    for name in CASTS:
        if os.environ.get(name):
            yield Diagnostic("environment", f"{name}={os.environ[name]}", _CAST[0], f"unset {name}; {_CAST[1]}")


def check_neuron_settings(config: Config) -> Iterator[Diagnostic]:
    """accelerator.neuron is there, and holds what the tools can read."""
    neuron = config.accelerator.neuron
    if neuron is None:
        yield Diagnostic("accelerator.neuron", None, "engine neuron needs it", "take a choice of accelerator=")
        return
    root = cache_root(config)
    if not CACHE_PATH.fullmatch(root):
        what = "an address" if "://" in root else "has more than letters, digits, _ - and /, or doesn't begin with /"
        why = f"{what}: optimum-neuron reads --cache_dir up to there and cuts off the rest"
        yield Diagnostic("accelerator.neuron.cache_dir", root, why, "give a directory such as /fsx/trntune/neuron")
    for flag in neuron.compiler_flags:
        if re.match(r"--(cache_dir|no[_-]cache)\b", flag):
            yield Diagnostic("accelerator.neuron.compiler_flags", flag, "is not a compiler flag", "use cache_dir")
        elif not flag.startswith("--"):
            yield Diagnostic("accelerator.neuron.compiler_flags", flag, "is not --name or --name=value", "write it so")


def check_model(config: Config) -> Iterator[Diagnostic]:
    """optimum-neuron has its own classes of the models that it trains [models/training/auto_models.py]."""
    facts, tensor = config.model.architecture, config.parallelism.tensor_parallel
    if facts is None:
        *others, last = FAMILIES
        families = f"{', '.join(others)} and {last}"
        path = Path(config.model.path).expanduser() if config.model.path else None
        found = family_of(path) if path is not None and path.is_dir() else "of none of these families"
        why = f"optimum-neuron trains {families} only, and this is {found}"
        yield Diagnostic("model", config.model.name, why, "take a model of these families, or another accelerator")
        return
    if facts.attention_bias or facts.mlp_bias:
        which = "attention_bias" if facts.attention_bias else "mlp_bias"
        why = (
            f"its {which}=true: optimum-neuron's layers have no biases [models/training/llama] and would leave them out"
        )
        yield Diagnostic("model", config.model.name, why, "take another model, or accelerator=cuda")
    sizes = {"intermediate_size": facts.intermediate_size, "vocab_size": facts.vocab_size}
    if FAMILIES[facts.family].whole_ends:
        del sizes["vocab_size"]
    for name, size in sizes.items():
        if size % tensor:
            why = f"tensor parallelism must divide {name}={size} of {config.model.name}"
            yield Diagnostic("parallelism.tensor_parallel", tensor, why, "give a divisor of it")


def check_sequence(config: Config) -> Iterator[Diagnostic]:
    """Sequence parallelism cuts a row into equal parts, and bf16 and norms of heads can't be without it."""
    parallel, training = config.parallelism, config.training
    if parallel.tensor_parallel == 1:
        return
    if parallel.sequence_parallel and training.max_length % parallel.tensor_parallel:
        why = f"sequence_parallel cuts a row into tensor_parallel={parallel.tensor_parallel} parts"
        best = max(1, round(training.max_length / parallel.tensor_parallel)) * parallel.tensor_parallel
        yield Diagnostic("training.max_length", training.max_length, why, f"nearest is {best}")
    if not parallel.sequence_parallel and training.precision == "bf16":
        why = (
            "in bf16 with tensor_parallel > 1 gradients of column-parallel inputs would not be summed over the ranks "
            "(seen: gradient norm 5.49 for 10.45)"
        )
        yield Diagnostic("parallelism.sequence_parallel", "false", why, "take true")
    elif not parallel.sequence_parallel and config.method.name == "full" and _norms_heads(config):
        why = (
            "each rank norms its own heads, and without sequence parallelism optimum-neuron sums no gradients of norms "
            "over the ranks (seen: q_norm and k_norm differ from rank to rank)"
        )
        yield Diagnostic("parallelism.sequence_parallel", "false", why, "take true")


def _norms_heads(config: Config) -> bool:
    facts = config.model.architecture
    return facts is not None and FAMILIES[facts.family].head_norms


def check_optimizer(config: Config) -> Iterator[Diagnostic]:
    """Precision of the optimizer follows from ZeRO-1 [trainers/training_args.py]."""
    zero, precision = config.parallelism.zero_1, config.training.precision
    if zero and precision == "fp32":
        why = "with training.precision=fp32 optimum-neuron would run the optimizer in bf16"
        yield Diagnostic("parallelism.zero_1", "true", why, "take training.precision=bf16, or parallelism.zero_1=false")
    if not zero and precision == "bf16":
        why = "optimum-neuron keeps fp32 master weights and fp32 gradients only with ZeRO-1, also on one replica"
        yield Diagnostic("parallelism.zero_1", "false", why, "take true")


def check_pipeline(config: Config) -> Iterator[Diagnostic]:
    """A tied output head has no place in a pipeline [models/training/modeling_utils.py: from_pretrained]; Granite has
    none at all [models/training/granite/modeling_granite.py: SUPPORTS_PIPELINE_PARALLELISM]."""
    facts, stages = config.model.architecture, config.parallelism.pipeline_parallel
    if stages == 1:
        return
    if facts is not None and facts.family == "granite":
        yield Diagnostic(
            "parallelism.pipeline_parallel", stages, "optimum-neuron has no pipeline for granite", "take 1"
        )
        return
    if facts is not None and facts.tied_embeddings:
        why = f"{config.model.name} ties embedding and output head, which optimum-neuron doesn't support in a pipeline"
        yield Diagnostic("parallelism.pipeline_parallel", stages, why, "take 1")
    yield from _check_places(config)
    if config.method.name == "lora" and config.lora.layers_to_transform:
        why = "each pipeline stage must have something to train, or nothing flows back through it"
        yield Diagnostic(
            "lora.layers_to_transform", listed(config.lora.layers_to_transform), why, "take null: all layers"
        )


def _check_places(config: Config) -> Iterator[Diagnostic]:
    """trn1 spreads four ranks of a model over a whole instance [neuronx_distributed,
    parallel_layers/parallel_state.py: initialize_model_parallel]."""
    parallel, accelerator = config.parallelism, config.accelerator
    on_trn1 = accelerator.neuron is not None and accelerator.neuron.logical_nc is None
    apart = min(world_size(config), accelerator.devices_per_instance or 1) // 4
    if on_trn1 and parallel.tensor_parallel == 4 and parallel.data_parallel % apart:
        why = f"with tensor_parallel=4 trn1 wants a multiple of {apart} replicas in each pipeline stage"
        yield Diagnostic("parallelism.data_parallel", parallel.data_parallel, why, "take another tensor_parallel")


def check_adapter(config: Config) -> Iterator[Diagnostic]:
    """LoRA on layers that optimum-neuron fuses, and variants that it hasn't."""
    if config.method.name != "lora":
        return
    lora, facts, parallel = config.lora, config.model.architecture, config.parallelism
    yield from _unsupported(lora)
    if facts is None:
        return
    linear = [each.name for each in linear_layers(facts)]
    names = set(
        linear if is_all_linear(lora) else (name for name in linear if name in _last_parts(lora.target_modules))
    )
    if fuses_qkv(facts, parallel) and 0 < len(set(QKV) & names) < 3:
        why = (
            f"at tensor_parallel={parallel.tensor_parallel} optimum-neuron fuses q_proj, k_proj and v_proj "
            f"({facts.kv_heads} key/value heads), which then get an adapter together or not at all"
        )
        remedy = f"name all three or none, or take tensor_parallel of at most {facts.kv_heads}"
        yield Diagnostic("lora.target_modules", listed(lora.target_modules), why, remedy)
    if len(set(GATE_UP) & names) == 1:
        why = "optimum-neuron fuses gate_proj and up_proj, which then get an adapter together or not at all"
        yield Diagnostic("lora.target_modules", listed(lora.target_modules), why, "name both or none")


def _last_parts(names: Sequence[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


_RENAMED = (
    "optimum-neuron puts the names of the layers that it fuses (gate_up_proj, qkv_proj) into target_modules alone, so "
    "that peft finds none of them by this setting"
)
_SHARDS = "optimum-neuron's shards don't say how such tensors lie over the ranks, so that they couldn't be put together"
_NOT_HERE = "leave it out, or train with accelerator=cuda"


def _unsupported(lora: LoraConfig) -> Iterator[Diagnostic]:
    """Settings of peft that optimum-neuron passes on unchanged to layers of its own [peft/peft_model.py,
    models/training/transformations_utils.py: adapt_peft_config]."""
    if lora.use_dora:
        why = "optimum-neuron takes DoRA's norms on each rank's part of a weight, and neither merges nor gathers them"
        yield Diagnostic("lora.use_dora", "true", why, "take lora=r16_qv, or lora=rslora")
    for setting, why in (
        ("rank_pattern", _RENAMED),
        ("alpha_pattern", _RENAMED),
        ("exclude_modules", _RENAMED),
        ("modules_to_save", _SHARDS),
        (
            "trainable_token_indices",
            "optimum-neuron's embedding is split by rows, and peft's layer for single rows isn't",
        ),
    ):
        value = getattr(lora, setting)
        if value:
            yield Diagnostic(f"lora.{setting}", listed(value), why, _NOT_HERE)
    if lora.bias != "none":
        yield Diagnostic("lora.bias", lora.bias, _SHARDS, _NOT_HERE)
    if lora.init_lora_weights == "orthogonal":
        why = "B A of a fused layer would not begin with zero: its layers share the first one's A"
        yield Diagnostic("lora.init_lora_weights", lora.init_lora_weights, why, "take true or gaussian")
    full = [name for name in lora.target_modules if "." in name]
    if full:
        yield Diagnostic(
            "lora.target_modules", listed(lora.target_modules), f"{full[0]}: {_RENAMED}", "name q_proj, ... alone"
        )


def check_no_compile(config: Config) -> Iterator[Diagnostic]:
    """Other hardware compiles nothing."""
    if config.accelerator.neuron is not None:
        why = f"engine {config.accelerator.engine} has no compiler"
        yield Diagnostic("accelerator.neuron", "{...}", why, "leave it out, or take accelerator=trn1_32xlarge")
    yield from check_no_torch_neuron(config)
    if COMPILE in config.stages:
        why = f"accelerator={config.accelerator.name} compiles no graphs"
        yield Diagnostic("stages", f"[{','.join(config.stages)}]", why, "leave compile out")


def check_no_torch_neuron(config: Config) -> Iterator[Diagnostic]:
    """accelerator.torch_neuron is for the other engine."""
    if config.accelerator.torch_neuron is not None:
        why, other = "is read by engine torch on device neuron alone", "accelerator=trn2_48xlarge_native"
        yield Diagnostic("accelerator.torch_neuron", "{...}", why, f"leave it out, or take {other}")


_ON_NEURON: tuple[Check, ...] = (
    check_shell,
    check_neuron_settings,
    check_model,
    check_sequence,
    check_optimizer,
    check_pipeline,
    check_adapter,
    check_no_torch_neuron,
)


def check_neuron(config: Config) -> Iterator[Diagnostic]:
    """All of the above, for the engine that they are about, and TorchNeuron's own for the torch engine on Neuron."""
    if on_torch_neuron(config):
        yield from check_torch_neuron(config)
        return
    on_neuron = config.accelerator.engine == config.accelerator.device == "neuron"
    for check in _ON_NEURON if on_neuron else (check_no_compile,):
        yield from check(config)


def check_trainable(config: Config) -> None:
    """Raise UsageError for what can be planned, but not be trained here. Nothing is created."""
    if fault := planned_only(config):
        raise UsageError(fault)
    if config.accelerator.device == "neuron":
        _check_one_instance(config)


def planned_only(config: Config) -> str | None:
    """Why a configuration can be planned, but not be started, in one line; None where it can."""
    if config.accelerator.device != "neuron":
        return None
    native = on_torch_neuron(config)
    root, fallback = (cache_directory(config), NATIVE_FALLBACK) if native else (cache_root(config), FALLBACK_CACHE)
    compiles = set(config.stages) & set(ON_ACCELERATOR)
    if not compiles or not is_submitted(config.cluster) or root != fallback:
        return None
    own = "accelerator.torch_neuron.cache_dir" if native else "accelerator.neuron.cache_dir"
    if (given := project_cache(config)) and not native:
        return (
            f"{given}/neuron: optimum-neuron reads a cache directory up to a character that is none of letters, "
            f"digits, _, - and /; give {own}=/fsx/trntune/neuron"
        )
    return (
        f"cluster.cache_dir={config.cluster.cache_dir or 'null'}: compiled graphs would be kept in {fallback} of each "
        f"node, and every node would compile them for itself; give a directory that all nodes share, such as "
        f"cluster.cache_dir=/fsx/trntune (or {own} for the graphs alone)"
    )


def _check_one_instance(config: Config) -> None:
    accelerator = config.accelerator
    each, world = accelerator.devices_per_instance, world_size(config)
    if not is_submitted(config.cluster) and each is not None and world > each:
        raise UsageError(
            f"cluster=local: {world} processes are {world // each} instances of {accelerator.name}, here is one; "
            "take cluster=slurm or cluster=hyperpod, or a layout of one instance; plan=true shows the plan"
        )
