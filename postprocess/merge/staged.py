"""A directory that exists whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.errors import TrntuneError
from postprocess.safetensors_stream import fsync


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give ``out``.tmp to write into; when the block ends, it becomes ``out``, and on an error it is removed.

    What a killed process left there is removed first. Raises TrntuneError while another process writes there, and for
    a full disk or a directory that can't be written.
    """
    directory = out.with_name(f"{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(directory):
            try:
                yield directory
                fsync(directory)
                directory.rename(out)
                fsync(out.parent)
            except BaseException:
                shutil.rmtree(directory, ignore_errors=True)
                raise
    except OSError as error:
        advice = "free room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the directory"
        raise TrntuneError(f"{out} can't be written: {error.strerror or error}; {advice}") from None


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    """Hold a lock on the directory, made anew. The kernel lets go of it when the process ends, however that happens."""
    if directory.exists():
        with _locked(directory):
            shutil.rmtree(directory)
    directory.mkdir()
    with _locked(directory):
        yield


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrntuneError(f"{directory} is being written by another process: wait for it") from None
        yield
    finally:
        os.close(handle)


def check_room(out: Path, needed: int) -> None:
    """Raise TrntuneError unless the disk of ``out`` has ``needed`` bytes free, a killed merge's leftover counted in."""
    place = out.parent
    while not place.exists():
        place = place.parent
    leftover = out.with_name(f"{out.name}.tmp")
    reusable = sum(file.stat().st_blocks * 512 for file in leftover.rglob("*")) if leftover.is_dir() else 0
    free = shutil.disk_usage(place).free + reusable
    if free < needed:
        raise TrntuneError(
            f"{out}: the merged model needs {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there"
        )
