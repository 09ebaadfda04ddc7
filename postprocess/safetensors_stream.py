"""Safetensors larger than memory: a model's shards are laid out from names and shapes, then filled tensor by tensor.

The safetensors library writes a dict of tensors that are all in memory. Here a tensor comes from memory one at a time,
or is copied from another file by the kernel and never becomes an object of this process.

Format: 8 bytes of header length (little-endian), a JSON header padded with spaces, the tensors' bytes without gaps.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from launcher.errors import TrntuneError, first
from launcher.io import fsync, write_durably
from launcher.model_dir.files import INDEX, SINGLE, index_of, lost_shards, weights_fault
from launcher.model_dir.safetensors_header import read_json_header
from postprocess import page_cache

if TYPE_CHECKING:
    import torch

# Data starts at a multiple of the page size: every tensor is then aligned for its dtype, and a mapping of the file too.
_ALIGNMENT = 4096
# Bytes a system call. For larger ones the kernel looks for larger pieces of free memory to cache the file in, and where
# memory is fragmented that takes up to four times as long as the copying.
_CHUNK = 256 << 10
# copy_file_range refuses one file system and works on the next: errors that mean "not here", not "broken".
_NOT_HERE = frozenset(
    (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EBADF, errno.ETXTBSY)
)

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


@dataclass(frozen=True)
class Shard:
    """One file to write: name, first bytes (length and JSON header), size, and each tensor's offset in the file."""

    filename: str
    preamble: bytes
    size: int
    specs: tuple[TensorSpec, ...]
    begins: Mapping[str, int]


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


# --- reading -------------------------------------------------------------------------------------------------------


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


# --- planning ------------------------------------------------------------------------------------------------------


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


# --- writing -------------------------------------------------------------------------------------------------------


class ShardedWriter:
    """Writes a model's tensors, in any order and each once, into the shards planned from ``specs``.

    Several threads may write different tensors at the same time.

    ``directory`` exists and is the caller's: a reader may take it for a model only when ``close`` has returned, so
    write beside the final place and rename. As a context manager it closes when the block ends without an error.
    ``whole``: names of files there that were written to their end before; their tensors are not asked for.
    """

    def __init__(
        self, directory: Path, specs: Sequence[TensorSpec], shard_bytes: int, whole: Collection[str] = ()
    ) -> None:
        self.directory = directory
        self.shards = plan_shards(specs, shard_bytes)
        self._specs = {spec.name: spec for spec in specs}
        self._shard_of = {spec.name: shard for shard in self.shards for spec in shard.specs}
        begun = [shard for shard in self.shards if shard.filename not in whole or not self._is_planned(shard)]
        self._missing = {spec.name: None for shard in begun for spec in shard.specs}
        # About as much is read.
        self._settles = page_cache.is_too_small_for(2 * total_bytes(self.shards))
        self._copier = 0  # in _COPIERS: those before it don't work here
        for shard in begun:
            self._start(shard)

    def lacks(self, name: str) -> bool:
        """Whether a tensor is still to be written."""
        return name in self._missing

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write a CPU tensor. Raises ValueError for another dtype or shape than planned, or a second writing."""
        if name in self._specs and tuple(tensor.shape) != self._specs[name].shape:
            raise ValueError(f"{name} was planned as {self._specs[name]}, not of shape {tuple(tensor.shape)}")
        self.write_rows(name, (tensor,))

    def write_rows(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Write a tensor by blocks of consecutive rows, each block a CPU tensor: for what is larger than memory allows.

        Raises ValueError for another dtype or another number of bytes than planned, or a second writing.
        """
        spec = self._take(name)
        begin = at = self._shard_of[name].begins[name]
        with self._opened(name) as target:
            for block in blocks:
                data = tensor_bytes(block)
                if dtype_code(block.dtype) != spec.dtype or at + len(data) > begin + spec.nbytes:
                    raise ValueError(f"{name} was planned as {spec}, not {block.dtype} {tuple(block.shape)}")
                _write_all(target, data, at)
                at += len(data)
        if at != begin + spec.nbytes:
            raise ValueError(f"{name} was planned as {spec}, but only {at - begin:,} bytes came")

    def copy(self, name: str, source_file: Path, offset: int) -> None:
        """Have the kernel copy the tensor's bytes from ``offset`` of ``source_file``.

        Raises TrntuneError where the file ends too early.
        """
        spec = self._take(name)
        with self._opened(name) as target, _reading(source_file) as source:
            done = 0
            while done < spec.nbytes:
                at = self._shard_of[name].begins[name] + done
                count = self._copy_some(source, offset + done, target, at, spec.nbytes - done)
                if count == 0:
                    raise TrntuneError(f"{source_file} ends within {name}: it is damaged or was changed meanwhile")
                done += count

    def settle(self, name: str) -> bool:
        """Where memory is too small for the model: force a tensor that was written to disk and out of the page cache.

        Returns whether it was done; what it was made from may then go too.
        """
        if self._settles:
            shard = self._shard_of[name]
            page_cache.forget_written(self.directory / shard.filename, shard.begins[name], self._specs[name].nbytes)
        return self._settles

    def close(self) -> None:
        """Force all to disk and write the index. Raises ValueError for a tensor never written."""
        if self._missing:
            raise ValueError(f"never written: {first(list(self._missing))}")
        for shard in self.shards:
            fsync(self.directory / shard.filename)
        if len(self.shards) > 1:
            weight_map = {name: self._shard_of[name].filename for name in sorted(self._specs)}
            size = sum(spec.nbytes for spec in self._specs.values())
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            write_durably(self.directory / INDEX, json.dumps(index, indent=2, ensure_ascii=False) + "\n")
        fsync(self.directory)

    def __enter__(self) -> ShardedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def _is_planned(self, shard: Shard) -> bool:
        """Whether the file that is there has this shard's header and size."""
        path = self.directory / shard.filename
        with path.open("rb") as stream:
            return path.stat().st_size == shard.size and stream.read(len(shard.preamble)) == shard.preamble

    def _start(self, shard: Shard) -> None:
        with (self.directory / shard.filename).open("wb") as stream:
            stream.write(shard.preamble)
            stream.truncate(shard.size)

    def _take(self, name: str) -> TensorSpec:
        """The plan for ``name``, which is written from here on."""
        if name not in self._missing:
            raise ValueError(f"{name} was written before" if name in self._specs else f"{name} was not planned")
        del self._missing[name]
        return self._specs[name]

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        # Opened for each tensor: a plan of many small shards must not run out of file descriptors.
        handle = os.open(self.directory / self._shard_of[name].filename, os.O_WRONLY)
        try:
            yield handle
        finally:
            os.close(handle)

    def _copy_some(self, source: int, offset: int, target: int, at: int, count: int) -> int:
        """Copy up to ``count`` bytes the best way that works here; the ways that don't are not tried again."""
        for number in range(self._copier, len(_COPIERS)):
            try:
                return _COPIERS[number](source, offset, target, at, min(count, _CHUNK))
            except OSError as error:
                if error.errno not in _NOT_HERE or number + 1 == len(_COPIERS):
                    raise
                self._copier = max(self._copier, number + 1)
        raise AssertionError("the last way either copies or raises")


_Copier = Callable[[int, int, int, int, int], int]


def _copy_file_range(source: int, offset: int, target: int, at: int, count: int) -> int:
    return os.copy_file_range(source, target, count, offset, at)


def _sendfile(source: int, offset: int, target: int, at: int, count: int) -> int:
    os.lseek(target, at, os.SEEK_SET)
    return os.sendfile(target, source, offset, count)


def _copy_chunk(source: int, offset: int, target: int, at: int, count: int) -> int:
    chunk = os.pread(source, count, offset)
    _write_all(target, memoryview(chunk), at)
    return len(chunk)


# On macOS there is no copy_file_range, and its sendfile writes to sockets only.
_COPIERS: tuple[_Copier, ...] = (
    (_copy_file_range, _sendfile, _copy_chunk) if hasattr(os, "copy_file_range") else (_copy_chunk,)
)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes in row-major order; a view where it already lies so."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def _write_all(target: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(target, data[:_CHUNK], at)
        data, at = data[count:], at + count


@contextmanager
def _reading(file: Path) -> Iterator[int]:
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise TrntuneError(f"{file} can't be read: {error.strerror}") from None
    try:
        yield handle
    finally:
        os.close(handle)
