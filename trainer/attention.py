"""Attention inside each document of a packed row, without a mask tensor.

transformers looks attention functions up by name, so this one is registered and chosen when the model is loaded.
Documents attend to themselves alone: the empty blocks that a block-diagonal mask would also compute are never touched,
and padding costs nothing. On a CPU in fp32 by trainer.block_attention, else by a call of scaled_dot_product_attention
(is_causal) a document.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from trainer.block_attention import Segment, block_attention
from trainer.fused.plain import is_plain

DOCUMENT_ATTENTION = "trntune_documents"


def segments_of(documents: torch.Tensor, rows: int, length: int) -> list[Segment]:
    """The segments of a batch of ``rows`` rows of ``length`` positions.

    ``documents`` is int64 [n, 3]: row, first position and position after the last, sorted. What no document covers
    is padding, returned as segments of its own.
    """
    segments: list[Segment] = []
    row, reached = 0, 0

    def pad_to(target_row: int, start: int) -> None:
        nonlocal row, reached
        while row < target_row:
            if reached < length:
                segments.append((row, reached, length, False))
            row, reached = row + 1, 0
        if reached < start:
            segments.append((row, reached, start, False))

    for document_row, start, end in documents.tolist():
        pad_to(document_row, start)
        segments.append((document_row, start, end, True))
        row, reached = document_row, end
    pad_to(rows, 0)
    return segments


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: list[Segment] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of query [B, H, L, D] to key and value [B, Hkv, L, D]; returns [B, L, H, D] and no weights.

    Without ``segments`` (a plain forward pass) every row is one document.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if dropout == 0 and is_plain(query, key, value):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return block_attention(query, key, value, segments, scale), None
    return _library_attention(query, key, value, segments, dropout, scaling), None


def _library_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: list[Segment],
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    outputs = []
    for row, start, end, is_document in segments:
        q, k, v = (states[row : row + 1, :, start:end] for states in (query, key, value))
        if is_document:
            out = scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, is_causal=True)
        else:
            # Nobody reads padding. Zeros that still depend on q, k and v keep every parameter in the graph of a
            # batch without documents: DistributedDataParallel waits for all gradients.
            out = (q + k + v) * 0
        outputs.append(out.transpose(1, 2))
    batch, heads, length, size = query.shape
    return torch.cat(outputs, dim=1).view(batch, length, heads, size)


AttentionInterface.register(DOCUMENT_ATTENTION, document_attention)
