"""A cache of directories, each built once, whole or not at all, whoever crashes or comes at the same time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from launcher.errors import TrntuneError


def root() -> Path:
    """TRNTUNE_CACHE, else trntune in the user's cache directory."""
    chosen = os.environ.get("TRNTUNE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "trntune"


def entry(name: str, build: Callable[[Path], None]) -> Path:
    """The directory ``name`` of the cache; ``build(directory)`` fills it the first time.

    It is built beside its place under a lock and renamed when complete. What a builder left that died is removed by
    the next one. Raises TrntuneError when the cache can't be written.
    """
    cache = root()
    final = cache / name
    if final.is_dir():
        return final
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{name}.lock"):
            if not final.is_dir():
                _build(final, build)
    except OSError as error:
        raise TrntuneError(
            f"the cache {cache} can't be written ({error.strerror or error}); free room there, "
            "or set TRNTUNE_CACHE to another directory"
        ) from None
    return final


def _build(final: Path, build: Callable[[Path], None]) -> None:
    # Under the lock nobody else builds this entry: whatever lies here is a dead builder's.
    for leftover in final.parent.glob(f".{final.name}.building-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.building-"))
    try:
        build(temporary)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
