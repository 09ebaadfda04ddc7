"""A model of any family by its own modules, without weights: counts for the plan of a model that conf/ has no facts of.

`python -m trainer.models.meta CONFIG.json` reads a run's configuration and prints JSON. The plan starts it as a process
of its own, since it imports torch, transformers and peft.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from launcher.adapters import first_layer, trained
from launcher.errors import TrntuneError
from launcher.schema import LoraConfig
from trainer.families.experts import idle_parameters
from trainer.models.adapt import peft_config, refuse_faults
from trainer.models.load import count_parameters


def on_meta(directory: Path) -> PreTrainedModel:
    """The model of a config.json on the meta device. Raises TrntuneError for what transformers can't read."""
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise TrntuneError(f"{directory}: {str(error).strip().splitlines()[0]}") from None
    return model


def facts(model: PreTrainedModel) -> dict[str, Any]:
    """The sizes of launcher.schema.ArchitectureConfig, as far as transformers' configuration names them."""
    config: Any = model.config
    heads = config.num_attention_heads
    return {
        "family": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "vocab_size": config.vocab_size,
        "max_positions": config.max_position_embeddings,
        "tied_embeddings": bool(config.tie_word_embeddings),
    }


def describe(path: str, lora: dict[str, Any] | None) -> dict[str, Any]:
    """Counts of the whole model and of what is trained (``lora`` None: everything), and its sizes."""
    model: Any = on_meta(Path(path).expanduser())
    found = facts(model)
    lookup = 0 if found["tied_embeddings"] else model.get_input_embeddings().weight.numel()
    idle = idle_parameters(model, model.config.get_text_config())
    total, trainable = count_parameters(model)
    parts = {}
    if lora is not None:
        adapter = LoraConfig(**lora)
        parts = adapted_parts(model, adapter)
        with torch.device("meta"):
            adapted = get_peft_model(model, peft_config(adapter, refuse_faults(model, adapter)), low_cpu_mem_usage=True)
        total, trainable = count_parameters(adapted)
        parts["low_rank"] = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    return {"total": total, "trainable": trainable, "matmul": total - lookup - idle, **parts, "facts": found}


def adapted_parts(model: PreTrainedModel, lora: LoraConfig) -> dict[str, int]:
    """What the time of a step depends on, of a model that peft hasn't changed yet: ``saved_matmul``, ``first_layer``,
    ``forward_only`` of launcher.plan.tensors.Parameters."""
    modules = refuse_faults(model, lora)
    found = trained(lora, modules)
    first = first_layer(lora, found, modules)
    below = [
        (name, p)
        for name, p in model.named_parameters()
        if (layer := modules.layer_of(name)) is not None and layer < first
    ]
    idle = idle_parameters(model, model.config.get_text_config())
    products = {*modules.linear, modules.head}
    return {
        "saved_matmul": sum(_weight(model, name) for name in found.saved if name in products),
        "first_layer": first,
        "forward_only": sum(p.numel() for _, p in below) - idle * first // max(1, modules.count),
    }


def _weight(model: PreTrainedModel, name: str) -> int:
    module: Any = model.get_submodule(name)
    return int(module.weight.numel())


def main(arguments: list[str]) -> int:
    """Process entry: prints the description, or an error for the plan to tell."""
    try:
        print(json.dumps(describe(**json.loads(arguments[0]))))
    except TrntuneError as error:
        print(json.dumps({"error": str(error)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
