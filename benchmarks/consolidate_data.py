"""A tensor-parallel sharded Llama in optimum-neuron's format (xser), written rank by rank and tensor by tensor."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

RANKS = 8
_POOL_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama. ``tied``: the output embedding is the input embedding, and is not saved."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    vocab: int = 128_256


# meta-llama/Llama-3.2-1B, Llama-3.2-3B and Meta-Llama-3-8B.
SHAPES = {
    "tiny": Shape(64, 96, 2, 8, 8, 8, True, 512),
    "1B": Shape(2048, 8192, 16, 32, 8, 64, True),
    "3B": Shape(3072, 8192, 28, 24, 8, 128, True),
    "8B": Shape(4096, 14_336, 32, 32, 8, 128, False),
}


def write_checkpoint(directory: Path, shape: Shape, tp: int = RANKS) -> int:
    """Write `config.json` and `shards/` below ``directory``, bf16, random. Returns the bytes of all tensor files.

    Memory: 64 MiB of random numbers that every tensor is cut from, and one rank's part of the largest tensor. ``tp``
    must divide the key heads.
    """
    if shape.kv_heads % tp:
        raise ValueError(f"tp={tp} does not divide {shape.kv_heads} key heads")
    model = directory / "shards" / "model"
    model.mkdir(parents=True)
    torch.manual_seed(0)
    pool = torch.randn(_POOL_ELEMENTS).bfloat16()
    for rank in range(tp):
        _write_rank(model / f"dp_rank_00_tp_rank_{rank:02d}_pp_rank_00.pt", shape, tp, rank, pool)
    shards = directory / "shards"
    (shards / "mp_metadata_pp_rank_0.json").write_text(json.dumps(_metadata(shape, tp)))
    (directory / "config.json").write_text(json.dumps(_config(shape)))
    for marker in ("checkpoint", "done"):
        (shards / marker).write_text("1")
    return sum(path.stat().st_size for path in model.glob("*.tensors/*"))


def _parameters(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], int | None]]:
    """Name, shape over all ranks, and the axis that is split, of each parameter as it is saved."""
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden), 0
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.self_attn.q_proj.weight", (queries, shape.hidden), 0
        yield f"{prefix}.self_attn.k_proj.weight", (keys, shape.hidden), 0
        yield f"{prefix}.self_attn.v_proj.weight", (keys, shape.hidden), 0
        yield f"{prefix}.self_attn.o_proj.weight", (shape.hidden, queries), 1
        yield f"{prefix}.mlp.gate_up_proj.weight", (2 * shape.inner, shape.hidden), 0
        yield f"{prefix}.mlp.down_proj.weight", (shape.hidden, shape.inner), 1
        yield f"{prefix}.input_layernorm.weight", (shape.hidden,), None
        yield f"{prefix}.post_attention_layernorm.weight", (shape.hidden,), None
    yield "model.norm.weight", (shape.hidden,), None
    if not shape.tied:
        yield "lm_head.weight", (shape.vocab, shape.hidden), 0


def _write_rank(path: Path, shape: Shape, tp: int, rank: int, pool: torch.Tensor) -> None:
    tensors = path.with_name(f"{path.name}.tensors")
    tensors.mkdir()
    references, info = {}, {}
    with _reference_class() as reference:
        for tid, (name, whole, dim) in enumerate(_parameters(shape)):
            local = tuple(size // tp if axis == dim else size for axis, size in enumerate(whole))
            # A replica is cut from the same place on every rank.
            begin = tid * 7919 + (0 if dim is None else rank * 104_729)
            torch.save(_cut(pool, local, begin), tensors / f"tensor_{tid}.pt")
            references[name] = reference(tid)
            info[tid] = {"dtype": torch.bfloat16, "shape": torch.Size(local), "expert_model_parallel": False}
        torch.save(references, path)
    torch.save(info, path.with_name(f"{path.name}.info.pt"))


def _cut(pool: torch.Tensor, shape: tuple[int, ...], offset: int) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    flat, filled = tensor.view(-1), 0
    while filled < flat.numel():
        begin = (offset + filled) % pool.numel()
        piece = pool[begin : begin + flat.numel() - filled]
        flat[filled : filled + piece.numel()] = piece
        filled += piece.numel()
    return tensor


@contextmanager
def _reference_class() -> Generator[Any, None, None]:
    """A class that pickles as torch_xla's TensorReference, which need not be installed."""
    module = types.ModuleType("torch_xla.utils.serialization")

    class TensorReference:
        def __init__(self, tid: int) -> None:
            self.tid = tid

    TensorReference.__module__, TensorReference.__qualname__ = module.__name__, "TensorReference"
    vars(module)["TensorReference"] = TensorReference
    parents = {name: types.ModuleType(name) for name in ("torch_xla", "torch_xla.utils")}
    with mock.patch.dict(sys.modules, {**parents, module.__name__: module}):
        yield TensorReference


def _metadata(shape: Shape, tp: int) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for name, _, dim in _parameters(shape):
        split = {"partition_dim": dim, "partition_stride": 2 if "gate_up" in name else 1, "num_partitions": tp}
        parameters[name] = {"tensor_model_parallel": dim is not None, **(split if dim is not None else {})}
    spec = {
        "fused_linear_name": "gate_up_proj",
        "linear_names": ["gate_proj", "up_proj"],
        "bias": False,
        "fuse_axis": 0,
        "original_dims": [shape.inner] * 2,
        "tp_size": tp,
        "peft_type": None,
    }
    modules = [f"model.layers.{layer}.mlp" for layer in range(shape.layers)]
    return {
        "parameters": parameters,
        "model_weight_transformation_specs": [
            {"module_fully_qualified_name": module, "specs": [["FusedLinearsSpec", spec]]} for module in modules
        ],
    }


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
    }
