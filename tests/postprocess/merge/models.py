"""Small random models and real peft adapters on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from postprocess.safetensors.header import source_tensors

_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=101, n_positions=64, bos_token_id=1, eos_token_id=2)

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, attention_bias=True)),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SIZES, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(_GPT2),  # Conv1D: weights are (in, out); the config.json doesn't say that it ties
}


def make_base(
    directory: Path, kind: str, dtype: torch.dtype = torch.float32, shard_size: str = "5GB", seed: int = 0
) -> Path:
    """A random model directory. Norms and biases are random too: left at 1 and 0 they would hide mistakes."""
    torch.manual_seed(seed)
    model = MODELS[kind]().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory, max_shard_size=shard_size)
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model.eval()


def make_adapter(
    directory: Path,
    base: Path,
    scale: float = 0.05,
    seed: int = 1,
    rows: int | None = None,
    save_embedding_layers: bool | str = "auto",
    **config: Any,
) -> Path:
    """An adapter saved by peft, with random values in everything that it trains. ``rows``: the vocabulary's size in its
    training."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "task_type": "CAUSAL_LM", "init_lora_weights": False, **config}
    model = get_peft_model(resized(load(base), rows), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(torch.randn_like(parameter) * scale)
    model.save_pretrained(str(directory), save_embedding_layers=save_embedding_layers)
    return directory


def resized(model: PreTrainedModel, rows: int | None) -> PreTrainedModel:
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def adapted(base: Path, adapter: Path, dtype: torch.dtype = torch.float32, rows: int | None = None) -> PeftModel:
    model = PeftModel.from_pretrained(resized(load(base, dtype), rows), str(adapter))
    assert isinstance(model, PeftModel)
    return model.eval()


def peft_merge(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """What peft's merge_and_unload gives, by name."""
    merged = adapted(base, adapter, dtype).merge_and_unload()
    return {name: parameter.detach() for name, parameter in merged.named_parameters(remove_duplicate=False)}


def stored(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model directory."""
    found: dict[str, torch.Tensor] = {}
    for file in {source.file for source in source_tensors(directory).values()}:
        found.update(load_file(file))
    return found
