"""Layouts of which there is no checkpoint in tests/data: random shards, put together by optimum-neuron's functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.errors import TrntuneError
from postprocess.consolidate.layout import logical_tensors
from postprocess.consolidate.metadata import read_metadata
from postprocess.consolidate.shards import ShardTensor
from tests.postprocess.consolidate.neuron_shards import Tensors, consolidated_by_optimum_neuron, digests

HIDDEN, HEAD, RANK = 24, 4, 3
# heads, key heads, tensor-parallel ranks: one and several copies a rank, one and several key heads a rank
GROUPS = [(8, 2, 4), (8, 2, 8), (16, 2, 4), (16, 4, 8), (12, 3, 6), (32, 4, 16), (8, 4, 4), (8, 1, 2)]


def attention(heads: int, kv_heads: int, tp: int, fuse_qkv: bool, lora: bool) -> tuple[list[Tensors], dict[str, Any]]:
    """Each rank's tensors and the stage's metadata, with random values."""
    copies = max(1, -(-tp // kv_heads))
    q_rows, kv_rows = heads * HEAD // tp, kv_heads * copies * HEAD // tp
    module = "base_model.model.model.layers.0.self_attn" if lora else "model.layers.0.self_attn"
    prefix = "lora_B.default." if lora else ""
    columns = RANK if lora else HIDDEN
    rows = {"q": q_rows, "k": kv_rows, "v": kv_rows} if not fuse_qkv else {"qkv": q_rows + 2 * kv_rows}
    shapes = {f"{module}.qkv_proj.{prefix}weight_{part}": ((count, columns), 0) for part, count in rows.items()}
    if lora:
        shapes[f"{module}.qkv_proj.lora_A.default.weight"] = ((RANK, HIDDEN), None)
        shapes[f"{module}.o_proj.lora_A.default.weight"] = ((RANK, q_rows), 1)
        shapes[f"{module}.o_proj.lora_B.default.weight"] = ((HIDDEN, RANK), None)
    else:
        shapes[f"{module}.o_proj.weight"] = ((HIDDEN, q_rows), 1)
    names = ("gqa_qkv_projection", "query_projection", "key_projection", "value_projection", "output_projection")
    spec = {
        **{f"{n}_name": v for n, v in zip(names, ("qkv_proj", "q_proj", "k_proj", "v_proj", "o_proj"), strict=True)},
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "kv_size_multiplier": copies,
        "q_output_size_per_partition": q_rows,
        "kv_output_size_per_partition": kv_rows,
        "fuse_qkv": fuse_qkv,
        "bias": False,
    }
    return random_ranks(shapes, tp), metadata(module, "GQAQKVColumnParallelLinearSpec", spec, shapes, tp, lora)


def fused(layers: tuple[str, ...], rows: int, tp: int, lora: bool) -> tuple[list[Tensors], dict[str, Any]]:
    """The same for linear layers stored as one."""
    module = "base_model.model.model.layers.0.mlp" if lora else "model.layers.0.mlp"
    count = len(layers) * rows // tp
    shapes: dict[str, tuple[tuple[int, ...], int | None]] = {f"{module}.fused.weight": ((count, HIDDEN), 0)}
    if lora:
        shapes = {
            f"{module}.fused.lora_A.default.weight": ((RANK, HIDDEN), None),
            f"{module}.fused.lora_B.default.weight": ((count, RANK), 0),
        }
    spec = {
        "fused_linear_name": "fused",
        "linear_names": list(layers),
        "bias": False,
        "fuse_axis": 0,
        "original_dims": [rows] * len(layers),
    }
    return random_ranks(shapes, tp), metadata(module, "FusedLinearsSpec", spec, shapes, tp, lora)


def random_ranks(shapes: dict[str, Any], tp: int) -> list[Tensors]:
    torch.manual_seed(0)
    names = {name: name.replace(".default", "") for name in shapes}
    return [{names[name]: torch.randn(shape) for name, (shape, _) in shapes.items()} for _ in range(tp)]


def metadata(
    module: str, kind: str, spec: dict[str, Any], shapes: dict[str, Any], tp: int, lora: bool
) -> dict[str, Any]:
    split = {"tensor_model_parallel": True, "partition_stride": 1, "num_partitions": tp}
    return {
        "parameters": {
            name: {"tensor_model_parallel": False} if dim is None else {**split, "partition_dim": dim}
            for name, (_, dim) in shapes.items()
        },
        "model_weight_transformation_specs": [
            {
                "module_fully_qualified_name": module,
                "specs": [[kind, {**spec, "tp_size": tp, "peft_type": "lora" if lora else None}]],
            }
        ],
    }


def ours(ranks: list[Tensors], content: dict[str, Any], directory: Path, adapter: str | None) -> Tensors:
    path = directory / "mp_metadata_pp_rank_0.json"
    path.write_text(json.dumps(content))
    stored = {name: ShardTensor(tuple(tensor.shape), tensor.dtype) for name, tensor in ranks[0].items()}
    found = {}
    for tensor in logical_tensors(0, read_metadata(path, adapter), stored):
        parts = [rank[tensor.saved] for rank in ranks]
        found[tensor.name] = torch.cat([block.clone() for block in tensor.blocks(parts)])
        planned = tensor.stored([ShardTensor(tuple(part.shape), part.dtype) for part in parts])
        assert tuple(found[tensor.name].shape) == planned.shape
    return found


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("fuse_qkv", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize(("heads", "kv_heads", "tp"), GROUPS)
def test_grouped_query_attention(
    heads: int, kv_heads: int, tp: int, fuse_qkv: bool, lora: bool, tmp_path: Path
) -> None:
    ranks, content = attention(heads, kv_heads, tp, fuse_qkv, lora)
    adapter = "default" if lora else None
    theirs = consolidated_by_optimum_neuron([ranks], [content], adapter)
    assert digests(ours(ranks, content, tmp_path, adapter)) == digests(theirs)
    assert any(name.endswith(("v_proj.weight", "v_proj.lora_B.weight")) for name in theirs)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("layers", [("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj")])
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_fused_linear_layers(layers: tuple[str, ...], tp: int, lora: bool, tmp_path: Path) -> None:
    ranks, content = fused(layers, 16, tp, lora)
    adapter = "default" if lora else None
    theirs = consolidated_by_optimum_neuron([ranks], [content], adapter)
    assert digests(ours(ranks, content, tmp_path, adapter)) == digests(theirs)


def test_an_adapter_of_the_output_projection_alone_has_the_models_head_order(tmp_path: Path) -> None:
    """optimum-neuron's own consolidation ends with a KeyError here."""
    ranks, content = attention(8, 2, 4, fuse_qkv=False, lora=True)
    whole = ours(ranks, content, tmp_path, "default")
    kept = [{name: tensor for name, tensor in rank.items() if "o_proj" in name} for rank in ranks]
    content["parameters"] = {name: value for name, value in content["parameters"].items() if "o_proj" in name}
    content["model_weight_transformation_specs"][0]["specs"][0][1]["peft_type"] = None
    alone = ours(kept, content, tmp_path, "default")
    assert digests(alone) == digests({name: tensor for name, tensor in whole.items() if "o_proj" in name})


@pytest.mark.parametrize("kind", ["ConcatSpec", "ModelWeightTransformationSpec", "os"])
def test_a_transformation_that_is_not_known_is_refused(kind: str, tmp_path: Path) -> None:
    ranks, content = fused(("gate_proj", "up_proj"), 16, 2, lora=False)
    content["model_weight_transformation_specs"][0]["specs"][0][0] = kind
    with pytest.raises(TrntuneError, match=f"transformation {kind} is not known"):
        ours(ranks, content, tmp_path, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fuse_axis": 1}, "fused along axis 1"),
        ({"peft_type": "ia3"}, "PEFT type ia3"),
        ({"original_dims": [16, 15]}, "do not fit"),
        ({"original_dims": [16, 32]}, "another model's"),
        ({"original_dims": "many"}, "not optimum-neuron's metadata"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    ranks, content = fused(("gate_proj", "up_proj"), 16, 2, lora=False)
    content["model_weight_transformation_specs"][0]["specs"][0][1].update(change)
    with pytest.raises(TrntuneError, match=message):
        ours(ranks, content, tmp_path, None)


@pytest.mark.parametrize("change", [{"num_attention_heads": 12}, {"kv_size_multiplier": 3}, {"bias": True}])
def test_heads_that_do_not_fit_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    ranks, content = attention(8, 2, 4, fuse_qkv=False, lora=False)
    content["model_weight_transformation_specs"][0]["specs"][0][1].update(change)
    with pytest.raises(TrntuneError, match=r"do not fit|not known"):
        ours(ranks, content, tmp_path, None)


def test_a_stride_without_a_transformation_is_refused(tmp_path: Path) -> None:
    ranks, content = fused(("gate_proj", "up_proj"), 16, 2, lora=False)
    content["model_weight_transformation_specs"] = []
    content["parameters"]["model.layers.0.mlp.fused.weight"]["partition_stride"] = 2
    with pytest.raises(TrntuneError, match="does not say how"):
        ours(ranks, content, tmp_path, None)
