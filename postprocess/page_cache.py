"""What a copy larger than memory leaves in the page cache: nothing.

Such a copy fills all free memory with pages that nobody reads again, pushes out those of others, and takes new memory
for each of its own: in a virtual machine, which gets memory from its host when it is first touched, that costs more
than the disk. A tensor that is done is therefore forced to disk, which it has to be anyway, and its pages are given
back: the next one uses them again.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

# Of the free memory: what fits into it stays, for whoever reads the model next.
_SHARE = 0.5
# Waiting for the disk costs more than the pages of less than this.
_SMALLEST = 1 << 20


def is_too_small_for(size: int) -> bool:
    """Whether memory has no room to spare for ``size`` bytes that are read or written."""
    return hasattr(os, "posix_fadvise") and size > psutil.virtual_memory().available * _SHARE


def forget_read(file: Path, begin: int, size: int) -> None:
    """Give back the pages of what was read; those of a mapping that is still in use stay."""
    _forget(file, begin, size, durable=False)


def forget_written(file: Path, begin: int, size: int) -> None:
    """Force what was written to disk, and give back its pages. Raises OSError as the disk says."""
    _forget(file, begin, size, durable=True)


def _forget(file: Path, begin: int, size: int, durable: bool) -> None:
    if size < _SMALLEST:
        return
    handle = os.open(file, os.O_RDONLY)
    try:
        if durable:
            os.fdatasync(handle)
        os.posix_fadvise(handle, begin, size, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
