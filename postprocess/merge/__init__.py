"""A base model and a peft adapter made into one plain model directory, tensor by tensor.

``merge`` is the library's way in, ``python -m postprocess.merge`` the command. Importing this package imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from postprocess.merge.options import MergeOptions

__all__ = ["MergeOptions", "merge"]


def merge(base: Path, adapter: Path, out: Path, options: MergeOptions | None = None) -> dict[str, Any]:
    """Write base + adapter as a model directory ``out``; returns its merge.json, and writes nothing when that is there.

    Raises UsageError or TrntuneError with one line for whatever can't be merged; ``out`` then doesn't exist.
    """
    from postprocess.merge.run import run  # torch, transformers and peft take seconds to import

    return run(base, adapter, out, options or MergeOptions())
