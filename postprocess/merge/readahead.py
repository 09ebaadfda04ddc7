"""Having the kernel read the base while Python imports its libraries."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread

import psutil

from postprocess.safetensors.header import SourceTensor

_STEP = 16 << 20
# Of what is free: the rest is for the pages that are written meanwhile.
_SHARE = 0.25


def read_ahead(tensors: Iterable[SourceTensor]) -> None:
    """Begin to read the tensors' files into the page cache, as much as is sure to stay there; returns at once.

    Only a hint: nothing waits for it, and where the platform has none it does nothing.
    """
    if hasattr(os, "posix_fadvise"):
        files = list(dict.fromkeys(tensor.file for tensor in tensors))
        Thread(target=_advise, args=(files, int(psutil.virtual_memory().available * _SHARE)), daemon=True).start()


def _advise(files: Iterable[Path], budget: int) -> None:
    for file in files:
        # Who reads the file for its content tells what is wrong with it, in words; a hint says nothing.
        with suppress(OSError), file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            for offset in range(0, min(size, budget), _STEP):
                os.posix_fadvise(stream.fileno(), offset, _STEP, os.POSIX_FADV_WILLNEED)
            budget -= size
        if budget <= 0:
            return
