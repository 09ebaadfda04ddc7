"""Forward and backward passes written out for layers whose automatic ones pass over the activations too often.

Each replaces the ``forward`` of a layer and nothing else: parameters, their names and what is saved stay the library's.
They serve fp32 on a CPU, where they were measured (docs/performance.md); everything else takes the layer's own way.
"""

from __future__ import annotations

from torch import nn

from trainer.fused.lora import fuse_lora
from trainer.fused.norm import fuse_norms


def fuse(model: nn.Module) -> dict[str, int]:
    """Replace what can be replaced in ``model``; returns how many layers of each kind."""
    return {"lora": fuse_lora(model), "norm": fuse_norms(model)}
