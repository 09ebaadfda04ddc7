"""Writing that survives a crash: what these functions have returned from is on the disk, not in a cache."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_CHUNK = 1 << 22


def write_json(path: Path, value: Any, allow_nan: bool = False) -> None:
    """Write ``value`` as JSON and fsync. Python's floats are written so that they are read back bit for bit.

    ``allow_nan``: also NaN and infinity, which JSON has no numbers for, as Python and transformers write and read them.
    """
    with path.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False, allow_nan=allow_nan)
        stream.flush()
        os.fsync(stream.fileno())


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write ``tensors`` as safetensors and fsync. The library writes without the GIL, so training goes on beside it."""
    save_file(tensors, path, metadata={"format": "pt"})
    sync_file(path)


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk: a rename alone may be lost with the power."""
    sync_file(path)


def sync_tree(root: Path) -> None:
    """Wait until everything in a directory is on the disk, before the directory gets its final name."""
    for path in [*root.rglob("*"), root]:
        sync_file(path)


def digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
