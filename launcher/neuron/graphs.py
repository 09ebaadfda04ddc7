"""The settings that the graphs of a run follow from. With another value of one of them the compiler sees other graphs.

AWS's "Neuron Persistent Cache" names model type and size, batch size, optimizer and its hyperparameters, and the places
where a graph is cut; "neuron_parallel_compile CLI" adds that everything but the number of steps must be the same in the
trial run and in the real one, the number of workers too. The learning rate is fed to a graph, not part of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from launcher.config.schema import ArchitectureConfig, Config, ParallelismConfig, accumulation_steps

Shapes = dict[str, Any]


def shapes(config: Config) -> Shapes:
    """What the graphs follow from, named as a person would; JSON values."""
    training, parallel, lora = config.training, config.parallelism, config.lora
    neuron = config.accelerator.neuron
    adapter = {
        "LoRA rank": lora.r,
        "LoRA alpha": lora.alpha,
        "LoRA dropout": lora.dropout,
        "LoRA layers": sorted(lora.target_modules),
        "rank-stabilised LoRA": lora.use_rslora,
        **({"LoRA decoder layers": sorted(lora.layers_to_transform)} if lora.layers_to_transform else {}),
    }
    return {
        "model": config.model.name,
        "architecture": None if config.model.architecture is None else _facts(config.model.architecture),
        "method": config.method.name,
        **(adapter if config.method.name == "lora" else {}),
        "row length": training.max_length,
        "rows a forward pass": training.micro_batch_size,
        "accumulation": accumulation_steps(config),
        "packing": config.dataset.packing,
        "precision": training.precision,
        "gradient checkpointing": training.gradient_checkpointing,
        "weight decay": training.weight_decay,
        "gradient norm limit": training.max_grad_norm,
        "tensor parallel": parallel.tensor_parallel,
        "pipeline parallel": parallel.pipeline_parallel,
        "data parallel": parallel.data_parallel,
        "sequence parallel": parallel.sequence_parallel,
        "ZeRO-1": parallel.zero_1,
        "compiler flags": [] if neuron is None else list(neuron.compiler_flags),
        "fused softmax": None if neuron is None else neuron.fuse_softmax,
        "cores a device": None if neuron is None else neuron.logical_nc,
        **({"environment": own} if (own := _of_the_compiler(config.accelerator.environment)) else {}),
    }


def _of_the_compiler(environment: list[str]) -> list[str]:
    """Variables that may change what is compiled: all but those of the runtime, the network and the allocator."""
    return sorted(each for each in environment if not each.startswith(("NEURON_RT_", "FI_", "MALLOC_")))


def _facts(facts: ArchitectureConfig) -> dict[str, Any]:
    """Without biases, which no model has here: graphs that were compiled before these were facts stay valid."""
    return {key: value for key, value in asdict(facts).items() if value or not key.endswith("_bias")}


def fuses_qkv(facts: ArchitectureConfig, parallel: ParallelismConfig) -> bool:
    """Whether q, k and v are one layer (GQAQKVColumnParallelLinear) [models/training/llama/modeling_llama.py]."""
    tensor = parallel.tensor_parallel
    return facts.kv_heads < tensor or facts.kv_heads % tensor != 0


def digest(found: Shapes) -> str:
    """Hash of ``found``, 12 digits."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]


def directory_name(config: Config) -> str:
    """Name of the directory of these graphs: readable, and of letters, digits, _ and - alone."""
    found = shapes(config)
    parallel = config.parallelism
    words = [
        config.model.name,
        config.method.name,
        f"{found['row length']}x{found['rows a forward pass']}",
        f"tp{parallel.tensor_parallel}pp{parallel.pipeline_parallel}dp{parallel.data_parallel}",
    ]
    return "-".join([*(re.sub(r"[^A-Za-z0-9]+", "_", word) for word in words), digest(found)])


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs, as "row length 1024 -> 2048"; [] when the graphs are the same."""
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name} {_written(before.get(name))} -> {_written(after.get(name))}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_written(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return "none" if value is None else json.dumps(value) if isinstance(value, bool) else str(value)
