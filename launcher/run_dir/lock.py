"""One run directory, one process: run.lock says who works in it.

The file holds the processes that do: the launcher, and the stage that it has started, which may outlive it for the
time of a last save. On this host a holder is dead when its process is gone. A holder on another host counts as alive
while it touches the file, or until Slurm starts the same job anew.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from launcher.errors import TrntuneError
from launcher.paths import shown

LOCK = "run.lock"
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 90.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class LockOwner:
    """A process that works in the directory."""

    role: str
    host: str
    boot: str
    """a host that was started anew has none of its old processes"""
    pid: int
    started: float
    """of the process, seconds since the epoch: pids are used again"""
    slurm_job_id: str | None


class LockHeldError(TrntuneError):
    """Another process works in the directory."""


def current_process(role: str) -> LockOwner:
    """This process."""
    import psutil

    created = psutil.Process().create_time()
    return LockOwner(role, socket.gethostname(), boot_id(), os.getpid(), created, os.environ.get("SLURM_JOB_ID"))


def boot_id() -> str:
    """Changes with every start of the machine; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def is_alive(holder: LockOwner, silent_seconds: float) -> bool:
    """Whether the holder may still be at work; ``silent_seconds`` is the time since the file was touched."""
    if holder.host != socket.gethostname():
        # Slurm starts a job anew once its nodes are gone.
        requeued = holder.slurm_job_id is not None and holder.slurm_job_id == os.environ.get("SLURM_JOB_ID")
        return not requeued and silent_seconds < STALE_SECONDS
    return holder.boot == boot_id() and runs(holder.pid, holder.started)


def runs(pid: int, started: float) -> bool:
    """True when the process that began at ``started`` is there and is more than a zombie."""
    import psutil

    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class RunLock:
    """Held from ``acquire`` to ``release``; kept alive by a thread in between."""

    def __init__(
        self,
        directory: Path,
        role: str,
        ancestors: frozenset[int] = frozenset(),
        patience: float = 0.0,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """``ancestors`` are processes on this host that may hold it too: the launcher of a stage. ``patience``: seconds
        to wait for another holder's end, unless ``give_up`` is true before."""
        self.directory, self.file = directory, directory / LOCK
        self.owner, self.ancestors, self.patience, self.give_up = (
            current_process(role),
            ancestors,
            patience,
            give_up,
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def acquire(self) -> None:
        """Raises LockHeldError, naming the holder, when patience has run out."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                self._take()
                break
            except LockHeldError:
                if time.monotonic() >= deadline or self.give_up():
                    raise
            time.sleep(_LOOK_SECONDS)
        self._thread.start()

    def _take(self) -> None:
        with self._guarded() as stream:
            found = _read(stream)
            silent = self._silent_seconds() if found else 0.0
            holders = [holder for holder in found if is_alive(holder, silent)]
            for holder in holders:
                if not (holder.host == self.owner.host and holder.pid in self.ancestors):
                    raise LockHeldError(self._refusal(holder, silent))
            _write(stream, [*holders, self.owner])

    def release(self) -> None:
        self._stop.set()
        with suppress(OSError), self._guarded() as stream:
            _write(stream, [holder for holder in _read(stream) if holder != self.owner])

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _refusal(self, holder: LockOwner, silent: float) -> str:
        remedy = "wait for its end, or end it"
        if holder.host != socket.gethostname():
            left = max(math.ceil(STALE_SECONDS - silent), 1)
            remedy += (
                f"; if it was killed, or its machine is gone, try again in {left} s: its last sign of life is "
                f"{max(silent, 0):.0f} s old, and one that is silent for {STALE_SECONDS:.0f} s counts as dead"
            )
        return (
            f"{shown(self.directory)}: process {holder.pid} on {holder.host} ({holder.role}) works in this directory; "
            f"{remedy}"
        )

    def _silent_seconds(self) -> float:
        """Since the file was touched, by the clock of its file system."""
        with tempfile.NamedTemporaryFile(dir=self.directory, prefix=f".{LOCK}.") as now:
            return os.fstat(now.fileno()).st_mtime - self.file.stat().st_mtime

    @contextmanager
    def _guarded(self) -> Iterator[Any]:
        """The open file, with no other process between reading and writing it."""
        try:
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise TrntuneError(f"{shown(self.file)} can't be written: {error.strerror}") from None
        with os.fdopen(handle, "r+", encoding="utf-8") as stream:
            with suppress(OSError):  # a file system without locks: two starts in the same instant are not told apart
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                if self._is_lost():
                    print(f"error: {shown(self.directory)}: taken over by another start of the job", file=sys.stderr)
                    _end_at_once()
                os.utime(self.file)

    def _is_lost(self) -> bool:
        """True when another process holds the directory, and not this one: Slurm took this node for dead and started
        the job anew. Two that write the same checkpoints would lose both."""
        with self._guarded() as stream:
            holders = _read(stream)
        return bool(holders) and self.owner not in holders and not self._stop.is_set()


def _end_at_once() -> None:
    """End this process and all below it. The end of a launcher asks its stage to save, and its place is another's."""
    import psutil

    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    os._exit(1)


def _read(stream: Any) -> list[LockOwner]:
    """The holders; none when a crash cut the file off, since only a living process could say otherwise."""
    stream.seek(0)
    try:
        return [LockOwner(**holder) for holder in json.loads(stream.read() or "[]")]
    except (ValueError, TypeError):
        return []


def _write(stream: Any, holders: list[LockOwner]) -> None:
    """Over the old text in one piece, and cut to length last: a kill in between leaves no file that holds nobody."""
    handle = stream.fileno()
    text = json.dumps([asdict(holder) for holder in holders]).encode()
    os.pwrite(handle, text.ljust(os.fstat(handle).st_size), 0)
    os.ftruncate(handle, len(text))
    os.fsync(handle)
