"""Causal attention of packed documents on a CPU: small blocks of matrix products, one autograd node a layer.

Against a call of scaled_dot_product_attention for each document, this

- computes only blocks on and below the diagonal, in products large enough for the BLAS; the backward pass computes
  their probabilities once more, as the library's kernel does: memory doesn't depend on how long documents are;
- multiplies the query heads that share a key head as one matrix, so keys and values are never repeated;
- writes every gradient where it belongs: slicing the rows would fill and add a tensor of the whole batch a document.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

# (row, start, end, is_document): stretches that attend to themselves alone, in order, covering every position.
Segment = tuple[int, int, int, bool]

BLOCK = 64  # queries at a time, of each head


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: list[Segment],
        scale: float,
    ) -> torch.Tensor:
        batch, heads, length, size = query.shape
        out = query.new_empty(batch, length, heads, size)
        for row, start, end, is_document in segments:
            target = out[row, start:end].transpose(0, 1)  # [H, L, D]
            if not is_document:
                target.zero_()
                continue
            q, k, v = (_document(states, row, start, end) for states in (query, key, value))
            grouped = _grouped(target, len(k))
            for rows, seen, probabilities in _blocks(q, k, scale):
                grouped[:, :, rows] = torch.bmm(probabilities, v[:, :seen]).view(
                    len(k), -1, rows.stop - rows.start, size
                )
        ctx.save_for_backward(query, key, value)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        grads = tuple(_empty_like(states) for states in (query, key, value))
        for row, start, end, is_document in ctx.segments:
            targets = [each[row, :, start:end] for each in grads]
            if not is_document:
                for target in targets:
                    target.zero_()
                continue
            q, k, v = (_document(states, row, start, end) for states in (query, key, value))
            g = _document(grad.transpose(1, 2), row, start, end)
            _document_gradients(q, k, v, g, ctx.scale, targets)
        return *grads, None, None


def _document_gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: float,
    targets: list[torch.Tensor],
) -> None:
    """Gradients of one document into ``targets``: views [H, L, D], [Hkv, L, D] and [Hkv, L, D]."""
    kv_heads = len(k)
    grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
    grad_q = _grouped(targets[0], kv_heads)
    for rows, seen, probabilities in _blocks(q, k, scale):
        g_block, q_block = _block(g, kv_heads, rows), _block(q, kv_heads, rows)
        grad_v[:, :seen].baddbmm_(probabilities.transpose(1, 2), g_block)
        grad_p = torch.bmm(g_block, v[:, :seen].transpose(1, 2))
        # The softmax's gradient, P * (dP - sum(P * dP)), by the library's own kernel.
        grad_s = torch._softmax_backward_data(grad_p, probabilities, -1, grad_p.dtype)
        target = grad_q[:, :, rows]
        target.copy_(torch.bmm(grad_s, k[:, :seen]).mul_(scale).view(target.shape))
        grad_k[:, :seen].baddbmm_(grad_s.transpose(1, 2), q_block, alpha=scale)
    targets[1].copy_(grad_k)
    targets[2].copy_(grad_v)


def _blocks(q: torch.Tensor, k: torch.Tensor, scale: float) -> Iterator[tuple[slice, int, torch.Tensor]]:
    """For each block of queries: its positions, how many keys it sees, probabilities [Hkv, groups x block, seen]."""
    kv_heads = len(k)
    for rows in _slices(q.shape[1]):
        seen, count = rows.stop, rows.stop - rows.start
        block = _block(q, kv_heads, rows)
        scores = torch.bmm(block, k[:, :seen].transpose(1, 2)).mul_(scale)
        # Only the last block's keys can lie after a query.
        scores.view(kv_heads, -1, count, seen)[..., rows.start :].add_(_future(count, q.dtype))
        yield rows, seen, torch.softmax(scores, dim=-1)


def _slices(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _document(states: torch.Tensor, row: int, start: int, end: int) -> torch.Tensor:
    """One document of [B, H, L, D], contiguous [H, n, D]."""
    return states[row, :, start:end].contiguous()


def _grouped(states: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[H, n, D] as [Hkv, groups, n, D], a view."""
    return states.unflatten(0, (kv_heads, -1))


def _block(states: torch.Tensor, kv_heads: int, rows: slice) -> torch.Tensor:
    """Rows of [H, n, D] with the heads that share a key head beside each other: [Hkv, groups x rows, D]."""
    return _grouped(states, kv_heads)[:, :, rows].flatten(1, 2)


def _future(count: int, dtype: torch.dtype) -> torch.Tensor:
    """[count, count]: minus infinity where the key lies after the query."""
    return torch.full((count, count), -math.inf, dtype=dtype).triu_(1)


def _empty_like(states: torch.Tensor) -> torch.Tensor:
    """[B, H, L, D] with the memory layout [B, L, H, D] of the linear layers' outputs."""
    batch, heads, length, size = states.shape
    return states.new_empty(batch, length, heads, size).transpose(1, 2)


def block_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: list[Segment], scale: float
) -> torch.Tensor:
    """Causal attention inside each document: query [B, H, L, D], key and value [B, Hkv, L, D]; returns [B, L, H, D]."""
    out: torch.Tensor = _BlockAttention.apply(query, key, value, segments, scale)
    return out
