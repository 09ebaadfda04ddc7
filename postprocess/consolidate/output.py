"""A directory that appears whole or not at all."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from launcher.errors import TrntuneError, UsageError
from postprocess.safetensors_stream import fsync

RESULT = "consolidate.json"
# Its presence says that a directory is a consolidation's; its lock that one is still at work.
_MARKER = ".consolidating"
_HEADROOM_BYTES = 64 << 20


def finished(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result in ``out`` when it is whole and of the input with this fingerprint; None when ``out`` may be written.

    Raises UsageError when something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        result: dict[str, Any] = json.loads((out / RESULT).read_text(encoding="utf-8"))
        same = result["input"]["fingerprint"] == fingerprint
        files = dict(result["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{out} exists and is not a consolidation's result: give another directory") from None
    if not same:
        raise UsageError(f"{out} is the result of another input or of other options: give another directory")
    damaged = [name for name, size in files.items() if not _has_size(out / name, size)]
    if damaged:
        raise UsageError(f"{out}: {', '.join(damaged)} changed since it was written: remove {out} to make it again")
    return result


@contextmanager
def whole_directory(out: Path, needed_bytes: int) -> Generator[Path, None, None]:
    """Gives `OUT.tmp` to be filled, and renames it to ``out`` when the block ends without an error.

    What a killed process left in `OUT.tmp` is removed first. Raises TrntuneError when another process fills it now,
    when it is nothing of ours, or when less than ``needed_bytes`` are free.
    """
    work = out.with_name(f"{out.name}.tmp")
    with _claimed(work):
        try:
            _check_space(work, needed_bytes)
            yield work
            (work / _MARKER).unlink()
            _sync(work)
            work.rename(out)
            fsync(out.parent)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


@contextmanager
def _claimed(work: Path) -> Generator[None, None, None]:
    if work.exists() and not _is_leftover(work):
        raise TrntuneError(f"{work} is in the way and not a consolidation's: move it or give another output directory")
    try:
        work.mkdir(parents=True, exist_ok=True)
        stream = (work / _MARKER).open("w")
    except OSError as error:
        raise TrntuneError(f"{work} cannot be written: {error.strerror}") from None
    with stream:
        _lock(stream, work)
        for path in work.iterdir():
            if path.name != _MARKER:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield


def _is_leftover(work: Path) -> bool:
    names = {path.name for path in work.iterdir()} if work.is_dir() else {work.name}
    return not names or bool(names & {_MARKER, RESULT})


def _lock(stream: IO[str], work: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrntuneError(f"{work} is being written by another process: wait for it") from None


def _check_space(work: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(work).free
    if free < needed_bytes + _HEADROOM_BYTES:
        raise TrntuneError(
            f"{work.parent} has {free / 1e9:.2f} GB free and {(needed_bytes + _HEADROOM_BYTES) / 1e9:.2f} GB are needed"
        )


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _sync(directory: Path) -> None:
    for path in directory.iterdir():
        fsync(path)
    fsync(directory)
