"""Writing a model's tensors into its shards, from memory or by the kernel."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from launcher.atomic_directory import note_whole, noted_whole
from launcher.errors import TrntuneError, first
from launcher.io import fsync, write_durably
from launcher.model_dir.files import INDEX
from postprocess import page_cache
from postprocess.safetensors.header import TensorSpec, dtype_code
from postprocess.safetensors.shards import Shard, plan_shards, total_bytes

if TYPE_CHECKING:
    import torch

# Bytes a system call. For larger ones the kernel looks for larger pieces of free memory to cache the file in, and where
# memory is fragmented that takes up to four times as long as the copying.
_CHUNK = 256 << 10
# copy_file_range refuses one file system and works on the next: errors that mean "not here", not "broken".
_NOT_HERE = frozenset(
    (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EBADF, errno.ETXTBSY)
)


class ShardedWriter:
    """Writes a model's tensors, in any order and each once, into the shards planned from ``specs``.

    Several threads may write different tensors at the same time.

    ``directory`` exists and is the caller's: a reader may take it for a model only when ``close`` has returned, so
    write beside the final place and rename. As a context manager it closes when the block ends without an error.
    ``resume``, for one thread: ``directory`` is a staged one (launcher.atomic_directory), where a file that is whole is
    noted as such; the tensors of those that were noted before are not asked for.
    """

    def __init__(self, directory: Path, specs: Sequence[TensorSpec], shard_bytes: int, resume: bool = False) -> None:
        self.directory, self._resumes = directory, resume
        self.shards = plan_shards(specs, shard_bytes)
        self._specs = {spec.name: spec for spec in specs}
        self._shard_of = {spec.name: shard for shard in self.shards for spec in shard.specs}
        whole = noted_whole(directory) if resume else []
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

    def write_rows(self, name: str, blocks: Iterable[torch.Tensor], mapped: bool = False) -> None:
        """Write a tensor by blocks of consecutive rows, each block a CPU tensor: for what is larger than memory allows.
        ``mapped``: the blocks are views of files, of which nothing may have been read yet.

        Raises ValueError for another dtype or another number of bytes than planned, or a second writing.
        """
        spec = self._take(name)
        begin = at = self._shard_of[name].begins[name]
        with self._opened(name) as target:
            for block in blocks:
                data = tensor_bytes(block)
                if dtype_code(block.dtype) != spec.dtype or at + len(data) > begin + spec.nbytes:
                    raise ValueError(f"{name} was planned as {spec}, not {block.dtype} {tuple(block.shape)}")
                (_write_mapped if mapped else _write_all)(target, data, at)
                at += len(data)
        if at != begin + spec.nbytes:
            raise ValueError(f"{name} was planned as {spec}, but only {at - begin:,} bytes came")
        self._note_if_whole(self._shard_of[name])

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

    def _note_if_whole(self, shard: Shard) -> None:
        if self._resumes and not any(self.lacks(spec.name) for spec in shard.specs):
            note_whole(self.directory, shard.filename)

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


def _write_mapped(target: int, data: memoryview, at: int) -> None:
    """``_write_all`` through a buffer: the kernel reads memory that it has mapped but not yet touched page by page, and
    slowly."""
    buffer = memoryview(bytearray(_CHUNK))
    for begin in range(0, len(data), _CHUNK):
        chunk = data[begin : begin + _CHUNK]
        buffer[: len(chunk)] = chunk
        _write_all(target, buffer[: len(chunk)], at + begin)


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
