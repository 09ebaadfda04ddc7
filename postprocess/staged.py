"""A directory that exists whole or not at all, and what it must not be mixed up with."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from launcher.errors import TrntuneError, UsageError
from postprocess.safetensors_stream import fsync

# In a directory that is being filled. Its presence is the only proof that the directory is a leftover of ours, which
# may be removed; its lock that a process is still at work.
MARKER = ".trntune_unfinished"


def work_of(out: Path) -> Path:
    """Where ``out`` is written until it is whole."""
    out = out if out.name else out.absolute()  # `.` has no name
    return out.with_name(f"{out.name}.tmp")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give ``out``.tmp to write into; when the block ends, it becomes ``out``, and on an error it is removed.

    What a killed process left there is removed first. Raises TrntuneError while another process writes there, when
    something else is there, for a full disk and for a directory that can't be written.
    """
    work = work_of(out)
    with _claimed(work):
        try:
            yield work
            for path in (*work.iterdir(), work):
                fsync(path)
            work.rename(out)
            # After the rename: a kill before it leaves a leftover that is known, one after it a whole result.
            (out / MARKER).unlink()
            fsync(out)
            fsync(out.parent)
        except OSError as error:
            _remove(work)
            raise _not_written(out, error) from None
        except BaseException:
            _remove(work)
            raise


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Raise UsageError where ``out``, or where it is written, is an input directory, lies in one or holds one."""
    for given in inputs:
        for place in (out, work_of(out)):
            here, there = place.resolve(), given.resolve()
            if here == there or here in there.parents or there in here.parents:
                raise UsageError(f"{place} overlaps the input {given}: give an output directory apart from it")


def is_leftover(work: Path) -> bool:
    """Whether a killed process of ours left this directory; an empty one was to get its marker, and holds nothing."""
    if work.is_symlink() or not work.is_dir():
        return False
    return (work / MARKER).is_file() or not any(work.iterdir())


def discard(result: Path, record: str) -> None:
    """Remove a stage's earlier result, which has the file ``record``; nothing else.

    It is renamed before: a kill then doesn't leave half of it in the way of the next result.
    """
    away = result.with_name(f".{result.name}.discarded")
    try:
        if away.is_dir():  # a removal was killed
            shutil.rmtree(away)
        if (result / record).is_file():
            result.rename(away)
            shutil.rmtree(away)
    except OSError as error:
        raise TrntuneError(f"{result}: the earlier result can't be removed: {error}; check the directory") from None


@contextmanager
def _claimed(work: Path) -> Iterator[None]:
    """Hold the lock of the directory, made anew. The kernel lets go of it when the process ends, in whatever way."""
    try:
        if os.path.lexists(work) and not is_leftover(work):
            raise TrntuneError(
                f"{work} is in the way: no unfinished work of this command: move it or give another output directory"
            )
        work.mkdir(parents=True, exist_ok=True)
        stream = (work / MARKER).open("w")
    except OSError as error:
        raise _not_written(work, error) from None
    with stream:
        _lock(stream, work)
        try:
            _empty(work)
        except OSError as error:
            raise _not_written(work, error) from None
        yield


def _lock(stream: IO[str], work: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.path.samestat(os.fstat(stream.fileno()), (work / MARKER).stat())
    except (BlockingIOError, FileNotFoundError):  # the latter: the other process has just finished
        held = False
    if not held:
        raise TrntuneError(f"{work} is being written by another process: wait for it")


def _empty(work: Path) -> None:
    for path in work.iterdir():
        if path.name != MARKER:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove(work: Path) -> None:
    """Remove a directory of ours, the marker last: what a kill leaves of it is then known as a leftover."""
    with suppress(OSError):
        _empty(work)
    shutil.rmtree(work, ignore_errors=True)


def _not_written(path: Path, error: OSError) -> TrntuneError:
    advice = "free room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the directory"
    return TrntuneError(f"{path} cannot be written: {error.strerror or error}; {advice}")
