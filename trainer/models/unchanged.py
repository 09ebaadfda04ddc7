"""Whether training changed anything: checksums of the trained weights before and after."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.device import has_fixed_shapes

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""by bytes of an element"""
_PIECE = 1 << 20
"""elements summed at a time: a sum in 64 bits makes copies of what it sums"""


def checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The sum of each tensor's elements, read as integers: equal for equal tensors. That all sums of a model stay as
    they were though its weights did not is an accident that doesn't happen; of a single tensor it might."""
    return {name: _checksum(tensor.detach()) for name, tensor in tensors.items()}


def _checksum(tensor: torch.Tensor) -> int:
    # A sum on such a device would be one more graph to compile.
    flat = (tensor.cpu() if has_fixed_shapes(tensor.device.type) else tensor).reshape(-1)
    pieces = flat.view(_BITS[tensor.element_size()]).split(_PIECE)
    return int(torch.stack([piece.sum(dtype=torch.int64) for piece in pieces]).sum()) if flat.numel() else 0
