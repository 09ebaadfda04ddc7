"""A directory that appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.atomic_directory import noted_whole, staged
from launcher.errors import TrntuneError, UsageError
from launcher.io import free_bytes

RESULT = "consolidate.json"
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
def whole_directory(out: Path, fingerprint: str, needed_bytes: int) -> Generator[Path, None, None]:
    """``staged``, which see. Raises TrntuneError also when fewer bytes are free than the files that are not there yet
    need."""
    with staged(out, fingerprint) as work:
        _check_space(work, needed_bytes - sum((work / name).stat().st_size for name in noted_whole(work)))
        yield work


def _check_space(work: Path, needed_bytes: int) -> None:
    free = free_bytes(work)
    if free < needed_bytes + _HEADROOM_BYTES:
        raise TrntuneError(
            f"{work.parent} has {free / 1e9:.2f} GB free and {(needed_bytes + _HEADROOM_BYTES) / 1e9:.2f} GB are needed"
        )


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
