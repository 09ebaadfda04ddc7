"""Which tensor goes into which file of a model, and where: laid out before anything is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.model_dir.files import SINGLE
from postprocess.safetensors.header import TensorSpec, itemsize

# Data starts at a multiple of the page size: every tensor is then aligned for its dtype, and a mapping of the file too.
_ALIGNMENT = 4096


@dataclass(frozen=True)
class Shard:
    """One file to write: name, first bytes (length and JSON header), size, and each tensor's offset in the file."""

    filename: str
    preamble: bytes
    size: int
    specs: tuple[TensorSpec, ...]
    begins: Mapping[str, int]


def plan_shards(specs: Sequence[TensorSpec], shard_bytes: int) -> list[Shard]:
    """Put tensors into files of at most ``shard_bytes`` each, in their order; a larger tensor has a file of its own.

    Raises ValueError for a name given twice, no tensors, and ``shard_bytes`` below 1.
    """
    if shard_bytes < 1 or not specs or len({spec.name for spec in specs}) != len(specs):
        raise ValueError("plan_shards needs tensors with distinct names and at least one byte a shard")
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if groups[-1] and filled + spec.nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.nbytes
    count = len(groups)
    return [_lay_out(_shard_name(number, count), group) for number, group in enumerate(groups, 1)]


def _shard_name(number: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _lay_out(filename: str, specs: Sequence[TensorSpec]) -> Shard:
    """Widest dtypes first, so that without gaps every tensor is still aligned for its elements."""
    ordered = sorted(specs, key=lambda spec: -itemsize(spec.dtype))  # stable: else the order stays
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position, begins = 0, {}
    for spec in ordered:
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        begins[spec.name] = position
        position += spec.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    preamble = len(text).to_bytes(8, "little") + text
    begins = {name: begin + len(preamble) for name, begin in begins.items()}
    return Shard(filename, preamble, len(preamble) + position, tuple(ordered), begins)


def total_bytes(shards: Sequence[Shard]) -> int:
    """What the shards' files take on disk, without the index."""
    return sum(shard.size for shard in shards)
