"""What safetensors files hold, by their headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from launcher.errors import TrntuneError, first
from launcher.model_dir.files import INDEX, SINGLE, index_of, lost_shards, weights_fault
from launcher.model_dir.safetensors_header import read_json_header

if TYPE_CHECKING:
    import torch

# Safetensors' dtype code: bytes an element, torch's name.
_DTYPES = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
    "I16": (2, "int16"),
    "U16": (2, "uint16"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "I32": (4, "int32"),
    "U32": (4, "uint32"),
    "F32": (4, "float32"),
    "I64": (8, "int64"),
    "U64": (8, "uint64"),
    "F64": (8, "float64"),
    "C64": (8, "complex64"),
}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its values. ``dtype`` is safetensors' code: F32, BF16, ..."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)


class HeaderEntry(NamedTuple):
    """A tensor in a file: dtype code, shape, and its bytes ``[begin, end)`` counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SourceTensor(NamedTuple):
    """Where a model directory holds a tensor: file, spec, byte offset from the file's start."""

    file: Path
    spec: TensorSpec
    begin: int


def itemsize(dtype: str) -> int:
    """Bytes an element of a safetensors dtype code. Raises TrntuneError for an unknown one."""
    try:
        return _DTYPES[dtype][0]
    except KeyError:
        raise TrntuneError(
            f"dtype {dtype!r} of safetensors is not supported (there are: {', '.join(_DTYPES)})"
        ) from None


def torch_dtype(dtype: str) -> torch.dtype:
    """torch's dtype of a safetensors code."""
    import torch

    itemsize(dtype)
    found = getattr(torch, _DTYPES[dtype][1])
    assert isinstance(found, torch.dtype)
    return found


def dtype_code(dtype: torch.dtype) -> str:
    """The safetensors code of torch's dtype. Raises TrntuneError where there is none."""
    name = str(dtype).removeprefix("torch.")
    for code, (_, torch_name) in _DTYPES.items():
        if torch_name == name:
            return code
    raise TrntuneError(f"safetensors has no dtype for {dtype}")


def read_header(file: Path) -> dict[str, HeaderEntry]:
    """The tensors of a safetensors file, in the order of their bytes. Raises TrntuneError for a damaged one."""
    header, data = read_json_header(file)
    return _entries(file, header, data, file.stat().st_size)


def _entries(file: Path, header: Any, data: int, size: int) -> dict[str, HeaderEntry]:
    """The header's entries by offset, once they are known to tile ``[data, size)`` of the file."""
    try:
        found = [(name, _entry(entry, data)) for name, entry in header.items() if name != "__metadata__"]
        found.sort(key=lambda item: (item[1].begin, item[1].end))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise TrntuneError(f"{file} is damaged: its safetensors header lacks fields; copy it again") from None
    position = data
    for name, entry in found:
        expected = TensorSpec(name, entry.dtype, entry.shape).nbytes
        if entry.begin != position or entry.end - entry.begin != expected:
            raise TrntuneError(f"{file} is damaged: the bytes of {name} are not where its header says; copy it again")
        position = entry.end
    if position != size:
        raise TrntuneError(f"{file} is damaged: {size:,} bytes, but its header says {position:,}; copy it again")
    return dict(found)


def _entry(entry: Any, data: int) -> HeaderEntry:
    begin, end = entry["data_offsets"]
    return HeaderEntry(str(entry["dtype"]), tuple(int(size) for size in entry["shape"]), data + begin, data + end)


def source_tensors(model_dir: Path) -> dict[str, SourceTensor]:
    """All tensors of a model directory: of model.safetensors, else of the shards that its index names.

    That is the order in which transformers looks. Raises TrntuneError for a directory without safetensors, a missing
    shard, and an index that doesn't agree with its shards.
    """
    if not model_dir.is_dir():
        raise TrntuneError(f"{model_dir} is not a directory: give one with {SINGLE} or {INDEX}")
    if (model_dir / SINGLE).exists():
        return of_file(model_dir / SINGLE)
    fault = lost_shards(model_dir, INDEX) if (model_dir / INDEX).exists() else weights_fault(model_dir)
    if fault is not None:
        raise TrntuneError(f"{model_dir}: {fault}")
    weight_map = index_of(model_dir / INDEX)
    if weight_map is None:
        raise TrntuneError(f"{model_dir} has neither {SINGLE} nor {INDEX}: give a model directory")
    return _of_index(model_dir, weight_map)


def of_file(file: Path) -> dict[str, SourceTensor]:
    """The tensors of one safetensors file. Raises TrntuneError for a damaged one."""
    return {
        name: SourceTensor(file, TensorSpec(name, entry.dtype, entry.shape), entry.begin)
        for name, entry in read_header(file).items()
    }


def _of_index(model_dir: Path, weight_map: Mapping[str, str]) -> dict[str, SourceTensor]:
    files = sorted(set(weight_map.values()))
    found: dict[str, SourceTensor] = {}
    for name in files:
        found.update(of_file(model_dir / name))
    astray = [
        name for name, file in weight_map.items() if name not in found or found[name].file.name != Path(file).name
    ]
    extra = [name for name in found if name not in weight_map]
    if astray:
        raise TrntuneError(f"{model_dir / INDEX} names tensors that its shards don't have: {first(astray)}")
    if extra:
        raise TrntuneError(f"{model_dir}: the shards have tensors that {INDEX} doesn't name: {first(extra)}")
    return found
