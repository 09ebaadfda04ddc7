"""Accelerator, engine and parallelism that cannot work together, or not with the model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.checks.diagnostic import Check, Diagnostic
from launcher.config.schema import (
    Config,
    LoraConfig,
    is_sharded,
    model_processes,
    offloads,
    on_torch_neuron,
    world_size,
)

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "neuron": "xla"}
TORCH_NEURON_BACKEND = "neuron"
ENGINES = {"cpu": ("torch",), "cuda": ("torch",), "neuron": ("neuron", "torch")}
"""Engines that train on a device; a refusal of any other names the first."""
OFFLOADING = ("cuda",)
"""Devices whose parts of a model may lie in host memory."""


def check_accelerator(config: Config) -> Iterator[Diagnostic]:
    """The communication backend belongs to the device, on Neuron also to the engine."""
    accelerator = config.accelerator
    wanted = TORCH_NEURON_BACKEND if on_torch_neuron(config) else BACKENDS.get(accelerator.device)
    if wanted and accelerator.backend != wanted:
        engine = f" with accelerator.engine={accelerator.engine}" if accelerator.device == "neuron" else ""
        remedy = f"accelerator.backend={wanted}" if engine else f"accelerator={accelerator.device}"
        why = f"accelerator.device={accelerator.device}{engine} needs {wanted}"
        yield Diagnostic("accelerator.backend", accelerator.backend, why, f"write {remedy}")


def check_generation(config: Config) -> Iterator[Diagnostic]:
    """TorchNeuron is for Trainium 2 and 3 [AWS: about-pytorch-neuron.html]."""
    accelerator = config.accelerator
    if on_torch_neuron(config) and re.search(r"(^|[^a-z0-9])(trn1|inf[12])", accelerator.name):
        why = f"TorchNeuron is for trn2 and trn3 alone, and this is {accelerator.name}"
        remedy = "leave accelerator.engine and accelerator.backend out: its engine is neuron"
        yield Diagnostic("accelerator.engine", accelerator.engine, why, remedy)


def check_engine(config: Config) -> Iterator[Diagnostic]:
    """The engine belongs to the device, and the torch engine has neither pipeline stages nor ZeRO-1."""
    accelerator, parallel = config.accelerator, config.parallelism
    engines = ENGINES.get(accelerator.device, ENGINES["cpu"])  # any other device is refused, but not by this check
    if accelerator.engine not in engines:
        why = f"accelerator.device={accelerator.device} needs {engines[0]}"
        yield Diagnostic("accelerator.engine", accelerator.engine, why, "take a choice of accelerator=")
    if accelerator.device == "neuron" and accelerator.engine != "torch":
        return
    other = "trn2_48xlarge, whose engine is neuron" if on_torch_neuron(config) else "trn1_32xlarge"
    for name in ("pipeline_parallel", "zero_1"):
        value = getattr(parallel, name)
        if value is True or value > 1:
            why = f"accelerator={accelerator.name} has none: its engine is torch"
            shown_value = "true" if value is True else value
            yield Diagnostic(f"parallelism.{name}", shown_value, why, f"leave it out, or take accelerator={other}")


def check_world_size(config: Config) -> Iterator[Diagnostic]:
    """Processes fill whole instances, or a power of two of one instance's devices."""
    each, world = config.accelerator.devices_per_instance, world_size(config)
    if each is None:
        return
    if (world > each and world % each) or (world < each and each % world):
        parallel = config.parallelism
        factors = f"{parallel.data_parallel}*{parallel.tensor_parallel}*{parallel.pipeline_parallel}"
        why = f"data*tensor*pipeline_parallel = {factors} = {world} processes don't fill instances of {each} devices"
        unit = model_processes(config)
        best = max(1, round(world / each)) * each // unit
        remedy = f"nearest is {best}" if best and best * unit % each == 0 else "change tensor_ or pipeline_parallel"
        yield Diagnostic("parallelism.data_parallel", parallel.data_parallel, why, remedy)


def check_split(config: Config) -> Iterator[Diagnostic]:
    """Heads and layers can be split as the parallelism says."""
    facts, parallel = config.model.architecture, config.parallelism
    tensor, stages = parallel.tensor_parallel, parallel.pipeline_parallel
    if facts is None:
        return
    if facts.heads % tensor:
        allowed = ", ".join(str(n) for n in range(1, facts.heads + 1) if facts.heads % n == 0)
        why = f"{config.model.name} has {facts.heads} attention heads, which it must divide: allowed are {allowed}"
        yield Diagnostic("parallelism.tensor_parallel", tensor, why)
    elif facts.kv_heads % tensor and tensor % facts.kv_heads:
        why = f"{config.model.name} has {facts.kv_heads} key/value heads: it must divide them or be a multiple of them"
        yield Diagnostic("parallelism.tensor_parallel", tensor, why)
    if stages > facts.layers:
        why = f"{config.model.name} has {facts.layers} layers"
        yield Diagnostic("parallelism.pipeline_parallel", stages, why, f"at most {facts.layers}")


def check_sharding(config: Config) -> Iterator[Diagnostic]:
    """FSDP needs the torch engine, weights that can be cut, and several processes or host memory to put parts into."""
    key = "parallelism.sharding"
    if not is_sharded(config):
        return
    if config.accelerator.engine != "torch":
        why = f"accelerator={config.accelerator.name} trains by optimum-neuron, which has no FSDP"
        yield Diagnostic(key, "fsdp", why, "take parallelism.zero_1=true, or tensor_parallel")
        return
    if world_size(config) == 1 and not offloads(config):
        why = "one process has nobody to share parameters with"
        remedy = "take parallelism=fsdp2, or a larger parallelism.data_parallel"
        if config.accelerator.device in OFFLOADING:
            remedy += ", or parallelism.cpu_offload=true"
        yield Diagnostic(key, "fsdp", why, remedy)
    if config.method.name == "lora" and config.lora.quantize_base is not None:
        why = f"a base in {config.lora.quantize_base} can't be cut into parts here"
        other = "sharding=ddp" if model_processes(config) == 1 else "parallelism=ddp2"
        yield Diagnostic("lora.quantize_base", config.lora.quantize_base, why, f"leave it out, or take {other}")


def check_offload(config: Config) -> Iterator[Diagnostic]:
    """Offloading is FSDP's, alone, and from a device with memory of its own."""
    parallel, accelerator, key = config.parallelism, config.accelerator, "parallelism.cpu_offload"
    if not parallel.cpu_offload:
        return
    if accelerator.device not in OFFLOADING:
        why = f"accelerator={accelerator.name}: parts of a model are kept for devices {', '.join(OFFLOADING)} alone"
        if accelerator.device == "cpu":
            why = f"accelerator={accelerator.name} computes in host memory already"
        yield Diagnostic(key, "true", why, "leave it out")
    elif not is_sharded(config):
        why = f"sharding={parallel.sharding} keeps a whole model on each device"
        yield Diagnostic(key, "true", why, "write parallelism.sharding=fsdp, or take parallelism=offload")
    elif parallel.tensor_parallel > 1:
        why = f"what tensor_parallel={parallel.tensor_parallel} has cut stays on its devices"
        yield Diagnostic(key, "true", why, "leave it out, or take parallelism=fsdp2")


SPLIT_FAMILIES = ("llama", "qwen3")
"""Whose layers trainer.engines.torch.tensor_parallel knows."""


def check_tensor_parallel(config: Config) -> Iterator[Diagnostic]:
    """What the torch engine splits over tensor_parallel processes."""
    parallel, key = config.parallelism, "parallelism.tensor_parallel"
    if config.accelerator.engine != "torch":
        return
    ranks, facts = parallel.tensor_parallel, config.model.architecture
    if ranks == 1:
        if parallel.sequence_parallel:
            why = "there is nobody to share positions with: tensor_parallel=1"
            yield Diagnostic("parallelism.sequence_parallel", "true", why, "leave it out, or take parallelism=tp2")
        return
    for name, shown, wanted in (("sharding", parallel.sharding, "fsdp"), ("sequence_parallel", "false", "true")):
        if getattr(parallel, name) not in (wanted, True):
            why = f"accelerator={config.accelerator.name} splits a model with {name}={wanted} alone"
            yield Diagnostic(
                f"parallelism.{name}", shown, why, f"write parallelism.{name}={wanted}, or take parallelism=tp2"
            )
    if facts is None or facts.family not in SPLIT_FAMILIES:
        family = "its family" if facts is None else facts.family
        why = f"{config.model.name}: layers of {family} aren't known well enough to be split, those of "
        yield Diagnostic(key, ranks, why + f"{' and '.join(SPLIT_FAMILIES)} are", "take parallelism=fsdp2")
        return
    shared = {
        "key/value heads": facts.kv_heads,
        "columns in its MLP": facts.intermediate_size,
        "rows of the embedding": facts.vocab_size,
    }
    for name, value in shared.items():
        if value % ranks:
            yield Diagnostic(key, ranks, f"{config.model.name} has {value} {name}, which it must divide")
    if config.training.max_length % ranks:
        why = f"must be a multiple of tensor_parallel={ranks}, whose processes share the positions of a row"
        nearest = max(config.training.max_length // ranks, 1) * ranks
        yield Diagnostic("training.max_length", config.training.max_length, why, f"nearest is {nearest}")
    if config.method.name == "lora":
        yield from _check_split_adapter(config.lora)


def _check_split_adapter(lora: LoraConfig) -> Iterator[Diagnostic]:
    """Matrices A and B are split as their layer is; nothing else that peft trains is."""
    others = {
        "use_dora": ("true", lora.use_dora),
        "bias": (lora.bias, lora.bias != "none"),
        "modules_to_save": (lora.modules_to_save, lora.modules_to_save),
        "trainable_token_indices": (lora.trainable_token_indices, lora.trainable_token_indices),
    }
    for name, (shown, asked) in others.items():
        if asked:
            why = "isn't split over parallelism.tensor_parallel"
            yield Diagnostic(f"lora.{name}", shown, why, "leave it out, or take parallelism=fsdp2")


def check_compile(config: Config) -> Iterator[Diagnostic]:
    """Engine neuron's graphs are whole steps already."""
    if config.training.compile == "layers" and config.accelerator.engine != "torch":
        why = f"accelerator={config.accelerator.name} compiles whole steps by torch_xla"
        yield Diagnostic("training.compile", "layers", why, "leave it out")


PARALLEL_CHECKS: tuple[Check, ...] = (
    *(check_generation, check_accelerator, check_engine, check_compile, check_sharding, check_offload),
    *(check_tensor_parallel, check_world_size, check_split),
)
