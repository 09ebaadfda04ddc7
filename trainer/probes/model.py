"""A model of any family by its own modules, without weights: counts for the plan of a model that conf/ has no facts of.

`python -m trainer.probes.model CONFIG.json` reads a run's configuration and prints JSON. The plan starts it as a
process of its own, since it imports torch, transformers and peft.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import trainer.lean_peft  # noqa: F401 (before whatever imports peft)
from launcher.architecture.adapters import Modules, first_layer, trained
from launcher.config.schema import LoraConfig
from launcher.errors import TrntuneError
from launcher.model_dir.weights import check_not_quantized
from trainer.families.experts import active_width, idle_parameters, looked_up
from trainer.families.pairs import head_size, heads, layer_extents, layers
from trainer.families.small import not_for_texts
from trainer.libraries.transformers_versions import setting
from trainer.models.adapt import check_faults, is_linear, peft_config
from trainer.models.load import count_parameters
from trainer.models.quantized import packed_layers


def on_meta(directory: Path) -> PreTrainedModel:
    """The model of a config.json on the meta device. Raises TrntuneError for what transformers can't read, and for
    quantized weights."""
    check_not_quantized(directory)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if (why := not_for_texts(config)) is not None:
            raise TrntuneError(f"{directory}: it can't be trained here, since {why}; take a model of texts alone")
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise TrntuneError(f"{directory}: {str(error).strip().splitlines()[0]}") from None
    return model


def facts(model: PreTrainedModel) -> dict[str, Any]:
    """The sizes of launcher.config.schema.ArchitectureConfig, as far as transformers' configuration names them: those
    of a Llama whose layers are as wide."""
    config: Any = model.config.get_text_config(decoder=True)
    count = heads(config) or 1
    head = model.get_output_embeddings()
    return {
        "family": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": active_width(config),
        "layers": layers(config),
        "heads": count,
        "kv_heads": min(count, _number(config, "num_key_value_heads") or count),
        "head_dim": head_size(config),
        "vocab_size": config.vocab_size,
        "max_positions": _number(config, "max_position_embeddings") or sys.maxsize,
        "tied_embeddings": head is not None and head.weight is model.get_input_embeddings().weight,
    }


def _number(config: Any, name: str) -> int | None:
    found = setting(config, name)
    return found if type(found) is int and found > 0 else None


def describe(path: str, lora: dict[str, Any] | None) -> dict[str, Any]:
    """Counts of the whole model and of what is trained (``lora`` None: everything), its sizes, and how far each layer's
    attention reaches."""
    model: Any = on_meta(Path(path).expanduser())
    found = {"facts": facts(model), "extents": layer_extents(model.config)}
    idle = idle_parameters(model, model.config.get_text_config())
    lookup = looked_up(model)
    total, trainable = count_parameters(model)
    parts = {}
    if lora is not None:
        adapter = LoraConfig(**lora)
        modules = check_faults(model, adapter)
        parts = adapted_parts(model, adapter, modules, idle)
        parts["packed"] = _packed(model, adapter, modules) if adapter.quantize_base else 0
        from peft import get_peft_model

        with torch.device("meta"):
            adapted = get_peft_model(model, peft_config(adapter, modules), low_cpu_mem_usage=True)
        total, trainable = count_parameters(adapted)
        parts["low_rank"] = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    return {**found, "total": total, "trainable": trainable, "matmul": total - lookup - idle, "idle": idle, **parts}


def _packed(model: PreTrainedModel, lora: LoraConfig, modules: Modules) -> int:
    """Weights that a base in 4 bit packs; biases stay as they are. Raises TrntuneError for layers that can't be."""
    layers: list[Any] = [model.get_submodule(name) for name in packed_layers(model, modules, lora)]
    return sum(layer.weight.numel() for layer in layers)


def adapted_parts(model: PreTrainedModel, lora: LoraConfig, modules: Modules, idle: int) -> dict[str, int]:
    """What the time of a step depends on, of a model that peft hasn't changed yet: ``saved_matmul``, ``first_layer``,
    ``forward_only`` of launcher.architecture.tensors.Parameters. ``idle``: parameters of experts that no token uses."""
    found = trained(lora, modules)
    first = first_layer(lora, found, modules)
    below = [
        (name, p)
        for name, p in model.named_parameters()
        if (layer := modules.layer_of(name)) is not None and layer < first
    ]
    saved: list[Any] = [module for name in found.saved if is_linear(module := model.get_submodule(name))]
    return {
        "saved_matmul": sum(module.weight.numel() for module in saved),
        "first_layer": first,
        "forward_only": sum(p.numel() for _, p in below) - idle * first // max(1, modules.count),
    }


def main(arguments: list[str]) -> int:
    """Process entry: prints the description, or an error for the plan to tell."""
    try:
        print(json.dumps(describe(**json.loads(arguments[0]))))
    except TrntuneError as error:
        print(json.dumps({"error": str(error)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
