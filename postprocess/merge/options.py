"""What a merge can be told."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import UsageError
from postprocess.merge.renames import Rename

# The dtypes that a model's weights are stored in: what the command line takes, and safetensors' code for it.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# What to say of an adapter with which any base of its shapes is taken.
UNSTATED = "the adapter has no base.json, so nothing says which base it was trained on"


@dataclass(frozen=True)
class MergeOptions:
    """``dtype``: a key of DTYPES, None keeps each tensor's own. ``logits``: prove the merge by logits where they fit
    into memory. ``any_base``: merge also with another base than the adapter was trained on. ``renames``: what the names
    of the adapter's tensors become before they are looked for in the base.
    """

    dtype: str | None = None
    shard_bytes: int = 5 * 10**9
    logits: bool = True
    any_base: bool = False
    renames: tuple[Rename, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r} is not known: choose one of {', '.join(DTYPES)}")
        if self.shard_bytes < 1:
            raise UsageError("the shard size has to be at least one byte")
