"""What an output directory must not be mixed up with: the inputs, what is somebody else's, and an earlier result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from launcher.atomic_directory import check_free, is_leftover, work_of
from launcher.errors import TrntuneError, UsageError
from launcher.io import free_bytes


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Raise UsageError where ``out``, or where it is written, is an input directory, lies in one or holds one."""
    for given in inputs:
        for place in (out, work_of(out)):
            here, there = place.resolve(), given.resolve()
            if here == there or here in there.parents or there in here.parents:
                raise UsageError(f"{place} overlaps the input {given}: give an output directory apart from it")


def check_foreign(result: Path, record: str) -> None:
    """Raise TrntuneError for a stage's output directory that holds something without the stage's own ``record``, which
    the stage neither replaces nor removes, and for what is in the way of writing it."""
    if os.path.lexists(result) and not (result / record).is_file() and not _is_empty(result):
        raise TrntuneError(f"{result} is in the way: it has no {record}, so no such stage made it: move it")
    check_free(result)


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


def check_room(out: Path, needed: int, what: str = "the merged model") -> None:
    """Raise TrntuneError unless the disk of ``out`` has ``needed`` bytes free, what a killed process left there counted
    in. ``what`` needs them."""
    leftover = work_of(out)
    reusable = sum(file.stat().st_blocks * 512 for file in leftover.rglob("*")) if is_leftover(leftover) else 0
    free = free_bytes(out.parent) + reusable
    if free < needed:
        raise TrntuneError(f"{out}: {what} needs {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
