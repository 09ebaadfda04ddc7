"""How many query/key pairs attention computes in a document, by how far each layer reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainer.reach import Reach

Reaches = Sequence[Reach | None]
"""of each layer; None: causal attention over all of a document"""


def layer_reaches(config: Any) -> list[Reach | None]:
    """How far the layers of a transformers configuration reach: its layer_types, or its one window for all of them."""
    config = config.get_text_config()
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"] * config.num_hidden_layers
    reaches = {
        "sliding_attention": Reach("window", window) if window else None,
        "chunked_attention": Reach("chunk", chunk) if chunk else None,
    }
    return [reaches.get(kind) for kind in kinds]


def pairs(lengths: torch.Tensor, reach: Reach | None) -> float:
    """Pairs of causal attention in documents of ``lengths`` [n] tokens."""
    lengths = lengths.double()
    if reach is None or reach.size is None:
        return float((lengths * (lengths + 1) / 2).sum())
    size = reach.size
    if reach.kind == "window":
        inside = lengths.clamp(max=size)
        return float((inside * (inside + 1) / 2 + (lengths - inside) * size).sum())
    whole, rest = lengths // size, lengths % size
    return float((whole * size * (size + 1) / 2 + rest * (rest + 1) / 2).sum())


def mean_pairs(lengths: torch.Tensor, reaches: Reaches) -> float:
    """The mean of the layers; without ``reaches`` all of them see all of a document."""
    if not reaches:
        return pairs(lengths, None)
    kinds = [reach for index, reach in enumerate(reaches) if reach not in reaches[:index]]
    return sum(pairs(lengths, kind) * reaches.count(kind) for kind in kinds) / len(reaches)
