"""Writing the merged tensors, each compared with the base while both are still in the page cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import safe_open

from launcher.errors import TrntuneError
from postprocess import page_cache
from postprocess.merge.adapter import Adapter
from postprocess.merge.changes import Load, widen
from postprocess.merge.outputs import Output, Outputs
from postprocess.merge.verify import same_bytes
from postprocess.safetensors.header import SourceTensor, read_header, torch_dtype
from postprocess.safetensors.writer import ShardedWriter

# Elements changed at a time: in fp32 4 MB, which stay in a core's cache.
_BLOCK = 1 << 20
# Rows of a block are a multiple of this: matrix products go in tiles, and whole ones give the same bits as all at once.
_TILE = 64
# Copying, adding and comparing are bound by memory: more threads than this only wait for each other.
_THREADS = 4


@dataclass
class Written:
    """What was found while writing. ``unchanged``: targets whose change is exactly zero."""

    copied: int = 0
    cast: int = 0
    changed: int = 0
    copied_bytes: int = 0
    unchanged: list[str] = field(default_factory=list)


def stored(source: SourceTensor) -> torch.Tensor:
    """A tensor of the base, or its first rows: memory-mapped, a view of the page cache."""
    with safe_open(source.file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(source.spec.name)
        return tensor[: source.spec.shape[0]] if tensor.ndim else tensor


def _load(adapter: Adapter, opened: Any) -> Load:
    """What gives the adapter's tensors by peft's names, of its opened file."""
    return lambda name: opened.get_tensor(adapter.names[name])


def write_tensors(directory: Path, outputs: Outputs, adapter: Adapter, shard_bytes: int) -> Written:
    """Write all shards into ``directory``. Raises TrntuneError when what is then on disk is not as it has to be:
    untouched tensors the base's bytes, cast ones its values, targets changed."""
    writer = _Writer(directory, outputs, adapter, shard_bytes)
    threads = torch.get_num_threads()
    workers = min(_THREADS, len(os.sched_getaffinity(0)))
    try:
        with writer.shards, ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            _all_done(pool, [pool.submit(writer.write, output) for output in outputs.tensors])
    finally:
        torch.set_num_threads(threads)
    return writer.written


def _all_done(pool: ThreadPoolExecutor, futures: list[Future[None]]) -> None:
    """Wait; after the first failure nothing more is begun."""
    try:
        for future in futures:
            future.result()
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise


class _Writer:
    def __init__(self, directory: Path, outputs: Outputs, adapter: Adapter, shard_bytes: int) -> None:
        self.shards = ShardedWriter(directory, outputs.specs, shard_bytes)
        self.written = Written()
        # What a reader of the files is told, not what the writer believes.
        self._places = {
            name: (directory / shard.filename, entry.begin)
            for shard in self.shards.shards
            for name, entry in read_header(directory / shard.filename).items()
        }
        self._adapter = adapter
        self._lock = Lock()

    def write(self, output: Output) -> None:
        """Write a tensor and look at what is then on disk. One thread's work; others do the same."""
        if output.copied:
            self.shards.copy(output.spec.name, output.source.file, output.source.begin)
        else:
            dtype = torch_dtype(output.spec.dtype)
            with safe_open(self._adapter.weights, framework="pt") as opened:
                blocks = merged_blocks(stored(output.source), output, _load(self._adapter, opened))
                self.shards.write_rows(output.spec.name, (block.to(dtype) for _, block in blocks))
        self._check(output)
        if self.shards.settle(output.spec.name):
            page_cache.forget_read(output.source.file, output.source.begin, output.source.spec.nbytes)

    def _check(self, output: Output) -> None:
        """Compare what was written with the base, while both are still in the page cache."""
        file, begin = self._places[output.spec.name]
        source, same_dtype = output.source, output.spec.dtype == output.source.spec.dtype
        if same_dtype:
            same = same_bytes(source.file, source.begin, file, begin, source.spec.nbytes)
        else:
            same = _same_values(source, output, file)
        if not output.changes and not same:
            raise TrntuneError(
                f"{output.spec.name} was written wrong: it differs from the base's; check disk and memory"
            )
        if output.changes and same and not _is_zero(output, self._adapter):
            raise TrntuneError(
                f"{output.spec.name} is as it was: the adapter's change is below the resolution of "
                f"{output.spec.dtype}; store the merged model in a wider --dtype, or train further"
            )
        with self._lock:
            self._count(output, same)

    def _count(self, output: Output, same: bool) -> None:
        if output.replaced:
            self.written.changed += 1
        elif output.copied:
            self.written.copied += 1
            self.written.copied_bytes += output.spec.nbytes
        elif not output.changes:
            self.written.cast += 1
        else:
            self.written.changed += 1
            if same:
                self.written.unchanged.append(output.spec.name)


def merged_blocks(
    weight: torch.Tensor, output: Output, load: Load, blank: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Blocks of the weight's rows, widened: as the base has them (``blank``: zeros), and with the changes applied."""
    for rows in _row_blocks(weight, all(change.by_rows for change in output.changes)):
        before = widen(weight[rows] if weight.ndim else weight)
        after = before = torch.zeros_like(before) if blank else before
        for change in output.changes:
            after = change.apply(after, rows, load)
        yield before, after


def _row_blocks(weight: torch.Tensor, divisible: bool) -> Iterator[slice]:
    rows = weight.shape[0] if weight.ndim else 1
    step = max(1, _BLOCK * rows // max(1, weight.numel()) // _TILE) * _TILE if divisible else max(1, rows)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _same_values(source: SourceTensor, output: Output, file: Path) -> bool:
    """Whether the written tensor is the base's in another dtype."""
    weight, dtype = stored(source), torch_dtype(output.spec.dtype)
    with safe_open(file, framework="pt") as opened:
        found = opened.get_tensor(output.spec.name)
        if not weight.ndim:
            return torch.equal(weight.to(dtype), found)
        return all(torch.equal(weight[rows].to(dtype), found[rows]) for rows in _row_blocks(weight, True))


def _is_zero(output: Output, adapter: Adapter) -> bool:
    """Whether the changes are exactly nothing, rather than too small to be seen in the sum."""
    weight = stored(output.source)
    with safe_open(adapter.weights, framework="pt") as opened:
        load = _load(adapter, opened)
        if all(change.adds for change in output.changes):
            return not any(bool(after.any()) for _, after in merged_blocks(weight, output, load, blank=True))
        return all(torch.equal(before, after) for before, after in merged_blocks(weight, output, load))
