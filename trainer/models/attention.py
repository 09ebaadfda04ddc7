"""Attention inside each document of a packed row, without a mask tensor.

transformers looks attention functions up by name, so this one is registered and chosen when the model is loaded.
Documents attend to themselves alone: the empty blocks that a block-diagonal mask would also compute are never touched,
and padding costs nothing. On a CPU in fp32 by trainer.models.block_attention, else by a call of
scaled_dot_product_attention (is_causal) a document. Windows, chunks, soft caps and sinks are computed; whatever else a
layer hands over is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv

from trainer.device import has_fixed_shapes
from trainer.fused.plain import is_plain
from trainer.models.block_attention import Segment, Terms, block_attention
from trainer.models.reach import (
    Reach,
    Segments,
    UnknownAttention,
    check_causal,
    document_mask,
    documents_of,
    in_chunks,
)

DOCUMENT_ATTENTION = "trntune_documents"

# What transformers hands through to every attention function, and what is in queries and keys by then or asks for
# nothing of attention: positions, and what the model is to give back.
_WITHOUT_EFFECT = (
    *("position_ids", "cache_position", "position_embeddings"),
    *("logits_to_keep", "output_router_logits", "output_hidden_states", "use_cache"),
)


def segments_of(documents: Iterable[Sequence[int]], rows: int, length: int) -> Segments:
    """The segments of a batch of ``rows`` rows of ``length`` positions.

    ``documents`` are each row, first position and position after the last, sorted. What no document covers
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

    for document_row, start, end in documents:
        pad_to(document_row, start)
        segments.append((document_row, start, end, True))
        row, reached = document_row, end
    pad_to(rows, 0)
    return Segments(segments)


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Reach | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of query [B, H, L, D] to key [B, Hkv, L, D] and value [B, Hkv, L, Dv]; returns [B, L, H, Dv] and
    no weights.

    Without ``segments`` (a plain forward pass) every row is one document. ``attention_mask`` is what ``document_mask``
    has returned, or the mask of a model that makes its own. ``s_aux`` [H] are attention sinks, as gpt-oss has them.
    Raises UnknownAttention for what isn't computed here.
    """
    who = type(module).__name__
    _check_known(who, kwargs)
    # Of a mask only a causal one comes here; some models say then that attention itself needn't be causal.
    if attention_mask is None and (is_causal is False or getattr(module, "is_causal", True) is False):
        raise UnknownAttention(f"{who} isn't causal")
    if query.shape[2] != key.shape[2]:
        raise UnknownAttention(f"{who} attends to {key.shape[2]} keys from {query.shape[2]} positions")
    reach = attention_mask if isinstance(attention_mask, Reach) else None
    each = documents_of(segments, reach, who)
    if each is None:
        each = [(row, 0, query.shape[2], True) for row in range(query.shape[0])]
    if isinstance(attention_mask, torch.Tensor):
        check_causal(attention_mask, each, who)
    window = reach.size if reach is not None and reach.kind == "window" else None
    if sliding_window is not None and window != sliding_window:
        raise UnknownAttention(f"{who} asks for sliding_window={sliding_window} and transformers masks by {window}")
    if reach is not None and reach.kind == "chunk" and reach.size is not None:
        each = in_chunks(each, reach.size)
    terms = Terms(query.shape[-1] ** -0.5 if scaling is None else scaling, window, softcap, s_aux)
    if dropout == 0 and is_plain(query, key, value):
        return block_attention(query, key, value, each, terms), None
    return _library_attention(query, key, value, each, dropout, terms), None


def _check_known(who: str, arguments: dict[str, Any]) -> None:
    """An argument that isn't known may change what attention computes; None and False ask for nothing."""
    for name, value in arguments.items():
        if value is not None and value is not False and name not in _WITHOUT_EFFECT:
            raise UnknownAttention(f"{who} hands {name} to attention, which isn't computed for packed rows")


def _library_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: list[Segment],
    dropout: float,
    terms: Terms,
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    batch, heads, length, _ = query.shape
    if has_fixed_shapes(query.device.type) and segments == [(row, 0, length, True) for row in range(batch)]:
        return _library_document(query, key, value, dropout, terms).transpose(1, 2)
    outputs = []
    for row, start, end, is_document in segments:
        q, k, v = (states[row : row + 1, :, start:end] for states in (query, key, value))
        if is_document:
            out = _library_document(q, k, v, dropout, terms)
        else:
            # Nobody reads padding. Zeros that still depend on q, k and v keep every parameter in the graph of a
            # batch without documents: DistributedDataParallel waits for all gradients.
            out = (v + (q + k).sum(-1, keepdim=True)) * 0
            if terms.sinks is not None:
                out = out + (terms.sinks * 0).to(out.dtype).view(1, -1, 1, 1)
        outputs.append(out.transpose(1, 2))
    return torch.cat(outputs, dim=1).view(batch, length, heads, value.shape[-1])


def _library_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float, terms: Terms) -> torch.Tensor:
    """One document, [1, H, n, D] each, or several of one length; no mask where no query sees less for the window."""
    length, window = q.shape[2], terms.window
    capped = terms.softcap is not None or terms.sinks is not None
    if not capped and (window is None or length <= window):
        return scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=terms.scale, is_causal=True)
    step = length if window is None else max(window, _LEAST)
    parts = []
    for start in range(0, length, step):
        end = min(start + step, length)
        first = 0 if window is None else max(0, start - window + 1)
        distance = torch.arange(start, end, device=q.device)[:, None] - torch.arange(first, end, device=q.device)
        sees = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        block = (q[:, :, start:end], k[:, :, first:end], v[:, :, first:end], sees)
        if capped:
            parts.append(_written_out(*block, dropout, terms))
        else:
            parts.append(scaled_dot_product_attention(*block[:3], attn_mask=sees, dropout_p=dropout, scale=terms.scale))
    return torch.cat(parts, dim=2)


_LEAST = 128
"""queries of a block at least: smaller ones would be mostly calls"""


def _written_out(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sees: torch.Tensor, dropout: float, terms: Terms
) -> torch.Tensor:
    """Attention as transformers' eager functions of Gemma 2 and gpt-oss compute it: [1, H, n, D] with ``sees`` [n, m].
    The softmax is in fp32."""
    scores = (q @ k.transpose(-1, -2)).float() * terms.scale
    if terms.softcap is not None:
        scores = torch.tanh(scores / terms.softcap) * terms.softcap
    scores = scores.masked_fill(~sees, float("-inf"))
    if terms.sinks is not None:
        sinks = terms.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    probabilities = torch.softmax(scores, dim=-1)[..., : k.shape[2]].to(v.dtype)
    return torch.nn.functional.dropout(probabilities, dropout) @ v


AttentionInterface.register(DOCUMENT_ATTENTION, document_attention)
AttentionMaskInterface.register(DOCUMENT_ATTENTION, document_mask)
