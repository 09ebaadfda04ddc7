"""mp_metadata_pp_rank_N.json: how one pipeline stage's parameters lie over the tensor-parallel ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError

# Parameters of an adapter carry its name; what is saved does not: `q_proj.lora_A.default.weight` is saved as
# `q_proj.lora_A.weight`, `embed_tokens.lora_embedding_A.default` as `embed_tokens.lora_embedding_A`.
_LORA = re.compile(r"(?P<head>.+\.lora_(?:embedding_)?[AB])\.(?P<adapter>\w+)(?P<tail>\..+)?")


@dataclass(frozen=True)
class Partition:
    """One parameter: ``dim`` is the axis that is split over the tensor-parallel ranks, None for a replica on each."""

    dim: int | None
    stride: int = 1
    ranks: int = 1


@dataclass(frozen=True)
class FusedLinears:
    """Linear layers stored as one: on each rank, its rows of the first, then its rows of the next."""

    module: str
    fused: str
    linears: tuple[str, ...]
    rows: tuple[int, ...]
    tp_size: int


@dataclass(frozen=True)
class GqaQkv:
    """Grouped-query attention whose key and value heads are repeated, so that each rank has one of them.

    Query heads are stored beside the copy of their key head, so their order differs from the model's; the output
    projection's columns follow it. ``fuse_qkv``: one `weight_qkv` instead of `weight_q`, `weight_k` and `weight_v`.
    """

    module: str
    fused: str
    query: str
    key: str
    value: str
    output: str
    heads: int
    kv_heads: int
    copies: int
    q_rows: int
    kv_rows: int
    fuse_qkv: bool
    tp_size: int


Spec = FusedLinears | GqaQkv


@dataclass(frozen=True)
class StageMetadata:
    """One pipeline stage. ``partitions`` is keyed by the names under which parameters are saved.

    ``required`` are those that must have been saved: all of a model, the adapter's own of an adapter.
    """

    path: Path
    partitions: dict[str, Partition]
    required: frozenset[str]
    specs: tuple[Spec, ...]

    @property
    def tp_sizes(self) -> set[int]:
        """The tensor-parallel sizes that are named anywhere: one, if the file is sound."""
        return {p.ranks for p in self.partitions.values() if p.dim is not None} | {s.tp_size for s in self.specs}


def read_metadata(path: Path, adapter: str | None) -> StageMetadata:
    """Read one stage. ``adapter`` is the adapter whose shards these are, None for a whole model.

    Raises TrntuneError for a file that is not such metadata, and for a transformation that is not known.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        partitions = {name: _partition(value) for name, value in content["parameters"].items()}
        entries = [(m["module_fully_qualified_name"], s) for m in _modules(content) for s in m["specs"]]
        specs = tuple(_spec(path, module, *entry) for module, entry in entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise TrntuneError(f"{path} is not optimum-neuron's metadata of a checkpoint ({detail})") from None
    saved, required = _as_saved(partitions, adapter)
    return StageMetadata(path, saved, required, specs)


def _as_saved(partitions: Mapping[str, Partition], adapter: str | None) -> tuple[dict[str, Partition], frozenset[str]]:
    if adapter is None:
        return dict(partitions), frozenset(partitions)
    matches = {name: _LORA.fullmatch(name) for name in partitions}
    own = {m["head"] + (m["tail"] or ""): name for name, m in matches.items() if m and m["adapter"] == adapter}
    # peft saves embeddings of the base with an adapter whose vocabulary was resized, so the base's names stay.
    base = {name: partition for name, partition in partitions.items() if not matches[name]}
    return {**base, **{saved: partitions[name] for saved, name in own.items()}}, frozenset(own)


def _modules(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    modules: list[dict[str, Any]] = content["model_weight_transformation_specs"]
    return modules


def _partition(value: Mapping[str, Any]) -> Partition:
    if not value["tensor_model_parallel"]:
        return Partition(None)
    return Partition(int(value["partition_dim"]), int(value["partition_stride"]), int(value["num_partitions"]))


def _spec(path: Path, module: str, kind: str, values: Mapping[str, Any]) -> Spec:
    if values.get("peft_type") not in (None, "lora"):
        raise TrntuneError(f"{path}: {module}: transformation of PEFT type {values['peft_type']} is not known")
    if kind == "FusedLinearsSpec":
        return _fused_linears(path, module, values)
    if kind == "GQAQKVColumnParallelLinearSpec":
        return _gqa(path, module, values)
    raise TrntuneError(f"{path}: {module}: transformation {kind} is not known; this reads optimum-neuron 0.4.5's")


def _fused_linears(path: Path, module: str, values: Mapping[str, Any]) -> FusedLinears:
    # optimum-neuron has a row variant too, which no model of 0.4.5 uses and whose LoRA inverse raises there.
    if values["fuse_axis"] not in (0, "column"):
        raise TrntuneError(f"{path}: {module}: linear layers fused along axis {values['fuse_axis']} are not known")
    spec = FusedLinears(
        module,
        values["fused_linear_name"],
        tuple(values["linear_names"]),
        tuple(int(rows) for rows in values["original_dims"]),
        int(values["tp_size"]),
    )
    if len(spec.linears) != len(spec.rows) or any(rows % spec.tp_size for rows in spec.rows):
        raise TrntuneError(f"{path}: {module}: {spec.rows} rows do not fit {spec.linears} on {spec.tp_size} ranks")
    return spec


def _gqa(path: Path, module: str, values: Mapping[str, Any]) -> GqaQkv:
    if values["bias"]:
        raise TrntuneError(f"{path}: {module}: biases with repeated key heads are not known: 0.4.5 cannot load them")
    spec = GqaQkv(
        module=module,
        fused=values["gqa_qkv_projection_name"],
        query=values["query_projection_name"],
        key=values["key_projection_name"],
        value=values["value_projection_name"],
        output=values["output_projection_name"],
        heads=int(values["num_attention_heads"]),
        kv_heads=int(values["num_key_value_heads"]),
        copies=int(values["kv_size_multiplier"]),
        q_rows=int(values["q_output_size_per_partition"]),
        kv_rows=int(values["kv_output_size_per_partition"]),
        fuse_qkv=bool(values["fuse_qkv"]),
        tp_size=int(values["tp_size"]),
    )
    repeated = spec.kv_heads * spec.copies
    if (
        repeated < 1
        or repeated % spec.tp_size
        or spec.heads % repeated
        or spec.q_rows * repeated != spec.kv_rows * (spec.heads)
    ):
        raise TrntuneError(f"{path}: {module}: heads and ranks do not fit each other: {dict(values)}")
    return spec
