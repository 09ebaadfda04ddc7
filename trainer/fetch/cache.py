"""A cache of directories, each built once, whole or not at all, whoever crashes or comes at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from launcher.atomic_directory import build_once
from launcher.errors import TrntuneError


def root() -> Path:
    """TRNTUNE_CACHE, else trntune in the user's cache directory."""
    chosen = os.environ.get("TRNTUNE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "trntune"


def entry(name: str, build: Callable[[Path], None]) -> Path:
    """The directory ``name`` of the cache; ``build(directory)`` fills it the first time.

    It is built beside its place under a lock, and renamed when complete and on the disk. Raises TrntuneError when the
    cache can't be written.
    """
    cache = root()
    final = cache / name
    if final.is_dir():
        return final
    try:
        build_once(final, build)
    except OSError as error:
        raise TrntuneError(
            f"the cache {cache} can't be written ({error.strerror or error}); free room there, "
            "or set TRNTUNE_CACHE to another directory"
        ) from None
    return final
