"""What a checkpoint is made of, written so that it is on the disk once these functions have returned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from launcher.io import fsync, write_durably


def write_json(path: Path, value: Any, allow_nan: bool = False) -> None:
    """Write ``value`` as JSON and fsync. Python's floats are written so that they are read back bit for bit.

    ``allow_nan``: also NaN and infinity, which JSON has no numbers for, as Python and transformers write and read them.
    """
    write_durably(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=allow_nan))


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write ``tensors`` as safetensors and fsync. The library writes without the GIL, so training goes on beside it."""
    save_file(tensors, path, metadata={"format": "pt"})
    fsync(path)
