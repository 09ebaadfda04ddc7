"""Causal attention of packed documents on a CPU: small blocks of matrix products, one autograd node a layer.

Against a call of scaled_dot_product_attention for each document, this

- computes only blocks on and below the diagonal, and inside the window where there is one, in products large enough
  for the BLAS; the backward pass computes their probabilities once more, as the library's kernel does: memory doesn't
  depend on how long documents are;
- multiplies the query heads that share a key head as one matrix, so keys and values are never repeated;
- writes every gradient where it belongs: slicing the rows would fill and add a tensor of the whole batch a document.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

# (row, start, end, is_document): stretches that attend to themselves alone, in order, covering every position.
Segment = tuple[int, int, int, bool]

BLOCK = 64  # queries at a time, of each head


@dataclass(frozen=True)
class Terms:
    """What a layer asks of causal attention, beside queries, keys and values."""

    scale: float
    window: int | None = None
    """keys that a query sees, its own included; None: all before it"""
    softcap: float | None = None
    """scores s become softcap * tanh(s / softcap)"""
    sinks: torch.Tensor | None = None
    """[H]: the score of a key without a value, one for each query head, in every query's softmax"""


class _Block(NamedTuple):
    """The probabilities of a block of queries."""

    rows: slice
    keys: slice
    probabilities: torch.Tensor
    """[Hkv, groups x rows, keys]"""
    slope: torch.Tensor | None
    """derivative of the soft cap, like the probabilities"""
    sunk: torch.Tensor | None
    """probabilities of the sinks, [Hkv, groups x rows]"""


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        segments: list[Segment],
        terms: Terms,
    ) -> torch.Tensor:
        batch, heads, length, _ = query.shape
        size = value.shape[-1]
        out = query.new_empty(batch, length, heads, size)
        for row, start, end, is_document in segments:
            target = out[row, start:end].transpose(0, 1)  # [H, L, D]
            if not is_document:
                target.zero_()
                continue
            q, k, v = (_document(states, row, start, end) for states in (query, key, value))
            grouped = _grouped(target, len(k))
            for rows, keys, probabilities, _, _ in _blocks(q, k, terms):
                grouped[:, :, rows] = torch.bmm(probabilities, v[:, keys]).view(
                    len(k), -1, rows.stop - rows.start, size
                )
        ctx.save_for_backward(query, key, value, sinks)
        ctx.segments, ctx.terms = segments, terms
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks = ctx.saved_tensors
        grads = tuple(_empty_like(states) for states in (query, key, value))
        grad_sinks = None if sinks is None else torch.zeros_like(sinks)
        for row, start, end, is_document in ctx.segments:
            targets = [each[row, :, start:end] for each in grads]
            if not is_document:
                for target in targets:
                    target.zero_()
                continue
            q, k, v = (_document(states, row, start, end) for states in (query, key, value))
            g = _document(grad.transpose(1, 2), row, start, end)
            _document_gradients(q, k, v, g, ctx.terms, targets, grad_sinks)
        return *grads, grad_sinks, None, None


def _document_gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    terms: Terms,
    targets: list[torch.Tensor],
    grad_sinks: torch.Tensor | None,
) -> None:
    """Gradients of one document into ``targets``: views [H, L, D], [Hkv, L, D] and [Hkv, L, D]; added to the sinks'."""
    kv_heads = len(k)
    grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
    grad_q = _grouped(targets[0], kv_heads)
    for rows, keys, probabilities, slope, sunk in _blocks(q, k, terms):
        g_block, q_block = _block(g, kv_heads, rows), _block(q, kv_heads, rows)
        grad_v[:, keys].baddbmm_(probabilities.transpose(1, 2), g_block)
        grad_p = torch.bmm(g_block, v[:, keys].transpose(1, 2))
        if sunk is not None and grad_sinks is not None:
            # A sink has no value: its score's gradient is -p_sink * sum(P * dP).
            pull = (probabilities * grad_p).sum(-1).mul_(sunk)
            grad_sinks -= pull.view(kv_heads, -1, rows.stop - rows.start).sum(-1).flatten()
        # The softmax's gradient, P * (dP - sum(P * dP)), by the library's own kernel.
        grad_s = torch._softmax_backward_data(grad_p, probabilities, -1, grad_p.dtype)
        if slope is not None:
            grad_s.mul_(slope)
        target = grad_q[:, :, rows]
        target.copy_(torch.bmm(grad_s, k[:, keys]).mul_(terms.scale).view(target.shape))
        grad_k[:, keys].baddbmm_(grad_s.transpose(1, 2), q_block, alpha=terms.scale)
    targets[1].copy_(grad_k)
    targets[2].copy_(grad_v)


def _blocks(q: torch.Tensor, k: torch.Tensor, terms: Terms) -> Iterator[_Block]:
    """The blocks of queries of one document, in order: q [H, n, D], k [Hkv, n, D]."""
    kv_heads = len(k)
    for rows in _slices(q.shape[1]):
        first = 0 if terms.window is None else max(0, rows.start - terms.window + 1)
        keys, count = slice(first, rows.stop), rows.stop - rows.start
        block = _block(q, kv_heads, rows)
        scores = torch.bmm(block, k[:, keys].transpose(1, 2)).mul_(terms.scale)
        slope = None
        if terms.softcap is not None:
            scores.div_(terms.softcap).tanh_()
            slope = 1 - scores.square()
            scores.mul_(terms.softcap)
        by_head = scores.view(kv_heads, -1, count, keys.stop - first)
        # Only the last block's keys can lie after a query.
        by_head[..., rows.start - first :].add_(_future(count, q.dtype))
        if terms.window is not None and rows.stop > terms.window:
            # Key j of the block lies before the window of query i where j <= i + reach.
            reach = rows.start - terms.window - first
            by_head[..., : count + reach].add_(_past(count, count + reach, reach, q.dtype))
        if terms.sinks is None:
            yield _Block(rows, keys, torch.softmax(scores, dim=-1), slope, None)
        else:
            sinks = terms.sinks.to(q.dtype).view(kv_heads, -1, 1, 1).expand(-1, -1, count, 1)
            both = torch.softmax(torch.cat([by_head, sinks], dim=-1).flatten(1, 2), dim=-1)
            yield _Block(rows, keys, both[..., :-1].contiguous(), slope, both[..., -1])


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


def _past(count: int, columns: int, reach: int, dtype: torch.dtype) -> torch.Tensor:
    """[count, columns]: minus infinity where column <= row + reach."""
    return torch.full((count, columns), -math.inf, dtype=dtype).tril_(reach)


def _empty_like(states: torch.Tensor) -> torch.Tensor:
    """[B, H, L, D] with the memory layout [B, L, H, D] of the linear layers' outputs."""
    batch, heads, length, size = states.shape
    return states.new_empty(batch, length, heads, size).transpose(1, 2)


def block_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: list[Segment], terms: Terms
) -> torch.Tensor:
    """Causal attention inside each document: query [B, H, L, D], key [B, Hkv, L, D] and value [B, Hkv, L, Dv]; returns
    [B, L, H, Dv]."""
    out: torch.Tensor = _BlockAttention.apply(query, key, value, terms.sinks, segments, terms)
    return out
