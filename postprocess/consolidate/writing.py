"""A ShardedWriter that takes a tensor in pieces, so that none is ever whole in memory."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from launcher.atomic_directory import note_whole, noted_whole
from postprocess.safetensors_stream import ShardedWriter, TensorSpec, dtype_code

# Bytes a system call. For larger ones the kernel looks for larger pieces of free memory to cache the file in, and where
# memory is fragmented that takes longer than copying: system time for 2.5 GB was 4.9 s at 4 MiB, 1.4 s at 256 KiB.
_BUFFER_BYTES = 256 << 10


class BlockWriter(ShardedWriter):
    """Adds ``write_blocks``, and going on after a kill: what a staged ``directory`` has whole is not written again. See
    ShardedWriter for the rest."""

    def __init__(self, directory: Path, specs: Sequence[TensorSpec], shard_bytes: int) -> None:
        super().__init__(directory, specs, shard_bytes, noted_whole(directory))
        self._buffer = np.empty(_BUFFER_BYTES, dtype=np.uint8)

    def __enter__(self) -> BlockWriter:
        return self

    def write_blocks(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Write CPU tensors that follow each other along the first axis of ``name``.

        Raises ValueError for another dtype or number of bytes than planned, or a second writing.
        """
        spec = self._take(name)
        begin = at = self._shard_of[name].begins[name]
        with self._opened(name) as target:
            for block in blocks:
                if dtype_code(block.dtype) != spec.dtype or at + block.nbytes > begin + spec.nbytes:
                    raise ValueError(f"{name} was planned as {spec}, not as {block.dtype} {tuple(block.shape)}")
                at = self._write_buffered(target, block, at)
        if at != begin + spec.nbytes:
            raise ValueError(f"{name} was planned as {spec}, and {at - begin} bytes were given")
        shard = self._shard_of[name]
        if not any(self.lacks(other.name) for other in shard.specs):
            note_whole(self.directory, shard.filename)

    def _write_buffered(self, target: int, block: torch.Tensor, at: int) -> int:
        """Write a block at an offset; returns the offset after it.

        Through a buffer, since the kernel reads memory that it has mapped but not yet touched page by page, and slowly.
        """
        data = block.contiguous().reshape(-1).view(torch.uint8).numpy()
        for begin in range(0, data.size, _BUFFER_BYTES):
            chunk = self._buffer[: min(_BUFFER_BYTES, data.size - begin)]
            chunk[:] = data[begin : begin + chunk.size]
            done = 0
            while done < chunk.size:
                done += os.pwrite(target, chunk[done:].data, at + done)
            at += chunk.size
        return at


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """Copying is bound by memory: torch's threads would only wait for each other, long on a machine that does more."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
