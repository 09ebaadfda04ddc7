"""From the parts that tensor-parallel ranks hold to the tensors of the original model.

Facts about optimum-neuron 0.4.5's layouts, each told by the stage's metadata:

- A parameter split along axis d: the ranks' parts follow each other along d. A replica: any rank's.
- Fused linear layers: each rank has its rows of every layer, one layer after the other.
- Grouped-query attention with ``copies`` of each key head: a rank's query heads are those that use its key heads. Over
  all ranks the query heads lie as [copies, kv_heads, share, head_dim], where the model has [kv_heads, copies, share,
  head_dim] (``share``: query heads per copy of a key head); the output projection's columns lie like them. Keys and
  values lie as ``copies`` equal blocks.
- LoRA follows its layer: the half that faces the split axis is split, the other one is a replica. A fused layer has one
  lora_A, which is the lora_A of each layer in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from launcher.errors import TrntuneError
from postprocess.consolidate.metadata import FusedLinears, GqaQkv, StageMetadata
from postprocess.consolidate.shards import ShardTensor

# What a piece of columns is gathered to: stays in the processor's cache until it is written.
_BLOCK_BYTES = 1 << 20

HeadAxis = Literal["rows", "columns"]


@dataclass(frozen=True)
class HeadOrder:
    """Query heads stored beside the copies of their key heads, along the rows or the columns of a matrix.

    Heads of one copy of one key head stay together: blocks stored as [copies, kv_heads] are [kv_heads, copies] in the
    model.
    """

    copies: int
    kv_heads: int
    axis: HeadAxis


@dataclass(frozen=True)
class LogicalTensor:
    """One tensor of the result and where it lies.

    ``saved`` is its name in the shards of pipeline stage ``stage``; ``rows`` the part of each rank's rows that is its;
    ``dim`` the axis along which ranks follow each other, None for a replica; ``copies`` how often the result then
    repeats along its rows.
    """

    name: str
    saved: str
    stage: int
    dim: int | None
    rows: tuple[int, int] | None = None
    heads: HeadOrder | None = None
    copies: int = 1

    def stored(self, parts: Sequence[ShardTensor]) -> ShardTensor:
        """Shape and dtype of the result. Raises TrntuneError when the ranks' parts do not fit each other."""
        local = [self._local_shape(part.shape) for part in parts]
        same = {(part.dtype, *self._but_dim(shape)) for part, shape in zip(parts, local, strict=True)}
        if len(same) > 1 or (self.dim is None and len(set(local)) > 1):
            found = ", ".join(f"{shape} {part.dtype}" for part, shape in zip(parts, local, strict=True))
            raise TrntuneError(f"{self.name}: the ranks' parts do not fit each other: {found}")
        shape = list(local[0])
        if self.dim is not None:
            shape[self.dim] = sum(part[self.dim] for part in local)
        if self.copies > 1:
            shape[0] = self._one_copy(shape[0])
        return ShardTensor(tuple(shape), parts[0].dtype)

    def blocks(self, parts: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The tensor from all ranks' parts, in pieces along its first axis; of replicas, rank 0's.

        A piece is a view of a part, or has a MiB at most unless a single row has more.
        """
        own = self._own(parts if self.dim is not None else parts[:1])
        yield from self._across(own) if self.dim == 1 and len(own) > 1 else self._along(own)

    def replicas(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What must be equal: each rank's part of a replica, each copy of a repeated key or value."""
        if self.dim is None:
            return list(parts)
        return list(torch.cat(self._own(parts)).chunk(self.copies)) if self.copies > 1 else []

    @property
    def is_replicated(self) -> bool:
        return self.dim is None or self.copies > 1

    def _own(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [part if self.rows is None else part[slice(*self.rows)] for part in parts]

    def _along(self, own: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Ranks follow each other along the rows, or there is but one."""
        if self.heads is not None:
            yield from self._heads_along(own, self.heads) if self.dim == 0 else self._across(own)
            return
        left = sum(part.shape[0] for part in own) // self.copies if self.copies > 1 else None
        for part in own:
            yield part if left is None else part[:left]
            left = None if left is None else max(0, left - part.shape[0])

    def _heads_along(self, own: Sequence[torch.Tensor], heads: HeadOrder) -> Iterator[torch.Tensor]:
        stored = [block for part in own for block in part.chunk(heads.copies * heads.kv_heads // len(own))]
        for kv_head in range(heads.kv_heads):
            yield from stored[kv_head :: heads.kv_heads]

    def _across(self, own: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Ranks follow each other along the columns: some rows of all ranks at a time."""
        row_bytes = sum(part[0].nbytes for part in own)
        step = max(1, _BLOCK_BYTES // row_bytes)
        for pieces in zip(*(part.split(step) for part in own), strict=True):
            rows = torch.cat(pieces, dim=1)
            if self.heads is not None:
                by_head = rows.reshape(rows.shape[0], self.heads.copies, self.heads.kv_heads, -1)
                rows = by_head.transpose(1, 2).reshape(rows.shape)
            yield rows

    def _local_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        needed = max(1 if self.rows else 0, 2 if self.heads else 0, (self.dim or 0) + 1)
        if len(shape) < needed or (self.rows is not None and shape[0] < self.rows[1]):
            raise TrntuneError(f"{self.name}: a part of shape {shape} does not fit what the metadata says of it")
        return shape if self.rows is None else (self.rows[1] - self.rows[0], *shape[1:])

    def _one_copy(self, rows: int) -> int:
        if rows % self.copies:
            raise TrntuneError(f"{self.name}: {rows} rows are not {self.copies} copies")
        return rows // self.copies

    def _but_dim(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.dim is None else (*shape[: self.dim], *shape[self.dim + 1 :])


def logical_tensors(stage: int, metadata: StageMetadata, saved: Mapping[str, ShardTensor]) -> list[LogicalTensor]:
    """What the tensors that stage ``stage``'s rank 0 saved are in the original model, in the order in which they lie.

    Raises TrntuneError for a tensor whose layout the metadata does not tell.
    """
    specs = [spec for spec in metadata.specs if isinstance(spec, FusedLinears)]
    groups = [spec for spec in metadata.specs if isinstance(spec, GqaQkv)]
    found: list[LogicalTensor] = []
    for name, stored in saved.items():
        fused = next((spec for spec in specs if _is_in(name, spec.module, spec.fused)), None)
        group = next((spec for spec in groups if _is_in(name, spec.module, spec.fused)), None)
        if fused is not None:
            found.extend(_unfuse(stage, metadata, fused, name, stored))
        elif group is not None:
            found.extend(_ungroup(stage, metadata, group, name, stored))
        else:
            found.append(_single(stage, metadata, groups, name))
    return found


def _is_in(name: str, module: str, layer: str) -> bool:
    return name.startswith(f"{module}.{layer}.")


def _unfuse(
    stage: int, metadata: StageMetadata, spec: FusedLinears, name: str, stored: ShardTensor
) -> Iterator[LogicalTensor]:
    layer, parameter = f"{spec.module}.{spec.fused}.", name.removeprefix(f"{spec.module}.{spec.fused}.")
    names = [name.replace(layer, f"{spec.module}.{linear}.") for linear in spec.linears]
    if parameter in ("lora_A.weight",):
        yield from (LogicalTensor(linear, name, stage, None) for linear in names)
        return
    if parameter not in ("weight", "bias", "lora_B.weight"):
        raise _not_known(metadata, name)
    begin = 0
    for linear, rows in zip(names, spec.rows, strict=True):
        end = begin + rows // spec.tp_size
        yield LogicalTensor(linear, name, stage, 0, (begin, end))
        begin = end
    if stored.shape[0] != begin:
        raise TrntuneError(f"{metadata.path} is another model's: {name} has {stored.shape[0]} rows, not {begin}")


def _ungroup(
    stage: int, metadata: StageMetadata, spec: GqaQkv, name: str, stored: ShardTensor
) -> Iterator[LogicalTensor]:
    parameter = name.removeprefix(f"{spec.module}.{spec.fused}.")
    prefix = "lora_B." if parameter.startswith("lora_B.") else ""
    projections = {"q": spec.query, "k": spec.key, "v": spec.value}
    if parameter == "lora_A.weight":
        for projection in projections.values():
            yield LogicalTensor(f"{spec.module}.{projection}.lora_A.weight", name, stage, None)
        return
    suffix = parameter.removeprefix(f"{prefix}weight_")
    if suffix not in (("qkv",) if spec.fuse_qkv else ("q", "k", "v")):
        raise _not_known(metadata, name)
    sizes = {"q": spec.q_rows, "k": spec.kv_rows, "v": spec.kv_rows}
    if stored.shape[0] != sum(sizes[letter] for letter in suffix):
        raise TrntuneError(f"{metadata.path} is another model's: {name} has {stored.shape[0]} rows on a rank")
    begin = 0
    for letter in suffix:
        tensor = LogicalTensor(f"{spec.module}.{projections[letter]}.{prefix}weight", name, stage, 0)
        if spec.fuse_qkv:
            tensor = replace(tensor, rows=(begin, begin + sizes[letter]))
            begin += sizes[letter]
        if letter == "q":
            yield replace(tensor, heads=HeadOrder(spec.copies, spec.kv_heads, "rows"))
        else:
            yield replace(tensor, copies=spec.copies)


def _single(stage: int, metadata: StageMetadata, groups: Sequence[GqaQkv], name: str) -> LogicalTensor:
    partition = metadata.partitions.get(name)
    if partition is None or (partition.dim is not None and (partition.stride != 1 or partition.dim not in (0, 1))):
        raise _not_known(metadata, name)
    group = next((spec for spec in groups if _is_in(name, spec.module, spec.output)), None)
    tensor = LogicalTensor(name, name, stage, partition.dim)
    # lora_B of the output projection has the model's own rows; only what is multiplied with heads is reordered.
    if group is None or not name.endswith((f"{group.output}.weight", f"{group.output}.lora_A.weight")):
        return tensor
    return replace(tensor, heads=HeadOrder(group.copies, group.kv_heads, "columns"))


def _not_known(metadata: StageMetadata, name: str) -> TrntuneError:
    return TrntuneError(f"{metadata.path} does not say how {name} lies over the ranks: another model's metadata?")
