"""Writes snapshots from a thread of its own, so that training waits for a copy to memory and not for the disk."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from launcher.io import fsync
from trainer.checkpoints import durable
from trainer.checkpoints.manifest import FileEntry, Manifest, describe
from trainer.checkpoints.peers import Peers
from trainer.checkpoints.store import Store
from trainer.models.stored import first_not_finite

Result = TypeVar("Result")
WEIGHTS = "weights/"
"""folder of the files that hold what is trained"""


@dataclass(frozen=True)
class Snapshot:
    """What one rank has to write: copies in host memory that nothing else changes."""

    manifest: Manifest
    """without files and time; the same on every rank"""
    tensors: dict[str, dict[str, torch.Tensor]]
    """file name -> tensors"""
    documents: dict[str, Any]
    """file name -> JSON value"""
    beside: Path | None = None
    """a file outside that must be on the disk, as long as it is now, before the checkpoint is"""


@dataclass(frozen=True)
class Outcome:
    """How a save ended, the same on every rank."""

    step: int
    seconds: float
    """of writing, beside the training"""
    bytes: int
    failure: str | None
    """None: it is durable"""
    warning: str | None = None
    """it is durable, but an older one could not be deleted"""


class NotFiniteWeights(Exception):
    """Training has diverged: nobody could go on from these weights."""


class PartFailed(Exception):
    """A rank could not do its part."""


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of a tensor with an infinite number or a NaN in it, or None."""
    found = first_not_finite(tensors.items())
    return None if found is None else found[0]


def write(snapshot: Snapshot, store: Store, peers: Peers, keep: int) -> Outcome:
    """Write and commit one checkpoint, all ranks together. Never raises for what the disk does."""
    start, step = time.perf_counter(), snapshot.manifest.step
    first = peers.rank == 0
    size = 0
    try:
        together(peers, lambda: store.begin(step) if first else None)
        entries = together(peers, lambda: write_files(snapshot, store.temporary(step)))
        files = {name: entry for found in entries for name, entry in found.items()}
        size = sum(entry.bytes for entry in files.values())
        warnings = together(peers, lambda: _commit(snapshot, files, store, keep) if first else None)
    except PartFailed as error:
        if first:
            store.discard(step)
        return Outcome(step, time.perf_counter() - start, size, str(error))
    return Outcome(step, time.perf_counter() - start, size, None, warnings[0])


def write_files(snapshot: Snapshot, directory: Path) -> dict[str, FileEntry]:
    """Write this rank's files durably. Returns them by name. Raises NotFiniteWeights before anything is written."""
    for name, tensors in snapshot.tensors.items():
        if name.startswith(WEIGHTS) and (bad := not_finite(tensors)):
            raise NotFiniteWeights(f"{bad} holds numbers that are not finite: training has diverged")
    for name in (*snapshot.tensors, *snapshot.documents):
        (directory / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, tensors in snapshot.tensors.items():
        durable.write_tensors(directory / name, tensors)
    for name, value in snapshot.documents.items():
        # Some families' config.json has an infinite limit.
        durable.write_json(directory / name, value, allow_nan=name.startswith(WEIGHTS))
    if snapshot.beside is not None and snapshot.beside.exists():
        fsync(snapshot.beside)
    names = (*snapshot.tensors, *snapshot.documents)
    inside = {parent for name in names for parent in Path(name).parents}
    for folder in {directory / parent for parent in inside}:
        fsync(folder)
    return {name: describe(directory / name) for name in names}


def _commit(snapshot: Snapshot, files: dict[str, FileEntry], store: Store, keep: int) -> str | None:
    """Returns what went wrong once the checkpoint was durable."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    store.commit(replace(snapshot.manifest, files=files, created_at=now))
    try:
        store.retain(keep)
    except OSError as error:
        return f"an older checkpoint can't be deleted: {error}"
    return None


def together(peers: Peers, action: Callable[[], Result]) -> list[Result]:
    """Do a part on every rank and wait for all. Raises PartFailed on every rank when one of them failed."""
    result, failure = None, None
    try:
        result = action()
    except (OSError, SafetensorError, NotFiniteWeights) as error:
        failure = str(error)
    try:
        answers = peers.all_gather((result, failure))
    except RuntimeError as error:
        raise PartFailed(f"another process of the run is gone ({str(error).partition(chr(10))[0]})") from None
    failures = [f"rank {rank}: {why}" if len(answers) > 1 else why for rank, (_, why) in enumerate(answers) if why]
    if failures:
        raise PartFailed(failures[0])
    return [answer for answer, _ in answers]


class Writer:
    """At most one save is under way: a second one waits for the first."""

    def __init__(self, store: Store, peers: Peers, keep: int) -> None:
        self.store, self.peers, self.keep = store, peers, keep
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._current: Future[Outcome] | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Begin to write. The one before must have been collected."""
        assert self._current is None
        self._current = self._pool.submit(write, snapshot, self.store, self.peers, self.keep)

    def finished(self) -> bool:
        """True when there is something to collect without waiting."""
        return self._current is not None and self._current.done()

    def collect(self) -> Outcome | None:
        """Wait for the save under way, if there is one."""
        if self._current is None:
            return None
        current, self._current = self._current, None
        return current.result()

    def close(self) -> None:
        self._pool.shutdown(wait=True)
