"""Models of a real one's shapes with random weights, and adapters on them: the disk doesn't know the difference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from launcher.errors import TrntuneError
from launcher.io import free_bytes
from launcher.paths import CONF
from postprocess.safetensors.header import TensorSpec
from postprocess.safetensors.writer import ShardedWriter

# Sizes by the model group's configurations, which have the shapes.
SIZES = {"tiny": "tiny_llama", "1B": "llama32_1b", "3B": "llama32_3b", "8B": "llama3_8b"}
_BLOCK = 1 << 25  # elements of random numbers; written again and again, nothing here compresses or deduplicates


def llama_config(size: str) -> LlamaConfig:
    """The configuration of one of SIZES."""
    facts = yaml.safe_load((CONF / "model" / f"{SIZES[size]}.yaml").read_text(encoding="utf-8"))["architecture"]
    return LlamaConfig(
        hidden_size=facts["hidden_size"],
        intermediate_size=facts["intermediate_size"],
        num_hidden_layers=facts["layers"],
        num_attention_heads=facts["heads"],
        num_key_value_heads=facts["kv_heads"],
        head_dim=facts["head_dim"],
        vocab_size=facts["vocab_size"],
        tie_word_embeddings=facts["tied_embeddings"],
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def parameters(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's weights, tied ones once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def write_base(directory: Path, size: str) -> Path:
    """A bf16 model directory in shards of 5 GB."""
    config = llama_config(size)
    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    specs = [TensorSpec(name, "BF16", shape) for name, shape in parameters(config).items()]
    noise = (torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    with ShardedWriter(directory, specs, 5 * 10**9) as writer:
        for spec in specs:
            writer.write_rows(spec.name, _pieces(noise, spec))
    return directory


def _pieces(noise: torch.Tensor, spec: TensorSpec) -> Iterator[torch.Tensor]:
    left = spec.nbytes // noise.element_size()
    while left > 0:
        yield noise[:left]
        left -= len(noise)


def write_adapter(directory: Path, size: str, rank: int = 16) -> Path:
    """A LoRA adapter on q_proj and v_proj in peft's format, random, fp32 as training leaves it."""
    directory.mkdir(parents=True)
    LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM").save_pretrained(
        str(directory)
    )
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in parameters(llama_config(size)).items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, shape[1], generator=generator) * 0.02
            tensors[f"{stem}.lora_B.weight"] = torch.randn(shape[0], rank, generator=generator) * 0.02
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def check_room(directory: Path, size: str, copies: int) -> None:
    """Raise TrntuneError unless ``copies`` models of ``size`` fit on the disk."""
    needed = copies * 2 * sum(math.prod(shape) for shape in parameters(llama_config(size)).values())
    free = free_bytes(directory)
    if free < needed:
        raise TrntuneError(f"{directory}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def description(size: str) -> dict[str, Any]:
    shapes = parameters(llama_config(size))
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    return {"size": size, "parameters": count, "bytes": 2 * count}
