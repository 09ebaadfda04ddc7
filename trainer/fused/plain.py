"""When the written-out passes apply."""

from __future__ import annotations

import torch


def is_plain(*tensors: torch.Tensor) -> bool:
    """True for fp32 (fp64) on a CPU without autocast, all of one type."""
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.float64)
        and all(tensor.dtype == first.dtype for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
    )
