"""How far attention reaches in a layer, as transformers says it: by the mask that it makes for each kind of layer.

transformers asks the mask function that is registered beside an attention function for a mask, and hands what it gets
to the layers (masking_utils.py). This one makes no mask. It returns a Reach: a few numbers that
the attention function computes documents by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from launcher.errors import UsageError
from trainer.libraries.transformers_versions import Queries, written_out_mask
from trainer.models.block_attention import Segment


class UnknownAttention(UsageError):
    """Attention that this project doesn't compute. The message names the argument and the class that hands it over."""


class Segments:
    """The segments of the rows at hand. An object, since torch.compile looks into a list that a layer is handed, and
    would compile anew for each row; into this it doesn't look."""

    def __init__(self, each: list[Segment]) -> None:
        self.each = each


@dataclass(frozen=True)
class Reach:
    """All before a query, or a window of ``size`` keys, its own included, or chunks of ``size`` positions from a
    document's start. The documents go with it: some models hand a mask to their layers, and nothing else."""

    kind: str
    """all, window or chunk"""
    size: int | None = None
    segments: Segments | None = None


_PACKED: ContextVar[Segments | None] = ContextVar("packed", default=None)


@contextmanager
def packed_rows(segments: Segments) -> Iterator[None]:
    """Inside, a model's forward pass is over rows of these documents: no layer may take them for one."""
    token = _PACKED.set(segments)
    try:
        yield
    finally:
        _PACKED.reset(token)


def documents_of(given: Segments | None, mask: Reach | None, who: str) -> list[Segment] | None:
    """The documents that a layer is handed, by name or with its mask; None outside of ``packed_rows``.

    Raises UnknownAttention where rows are packed and the layer isn't told.
    """
    found = given if given is not None or mask is None else mask.segments
    if found is not None:
        return found.each
    if _PACKED.get() is not None:
        raise UnknownAttention(f"{who} isn't told where documents begin")
    return None


def document_mask(
    batch_size: int,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> Reach | torch.Tensor | None:
    """What transformers calls for a mask: how far attention reaches, and the documents; None for a plain pass.

    Without ``attention_mask`` transformers looks for documents by itself (where positions begin again), so the mask is
    made and the attention function looks at it. Raises UnknownAttention for a mask that is neither causal, nor a
    window, nor chunks.
    """
    queries = Queries.of(kwargs)
    if attention_mask is None and mask_function is not None:
        return written_out_mask(batch_size, queries, kv_length, kv_offset, mask_function)
    # transformers allows no skip where the model adds to the causal pattern or takes from it.
    if not allow_is_causal_skip or kv_offset or mask_function is None or queries.length != kv_length:
        raise UnknownAttention("the model adds a pattern of its own to the causal mask")
    if local_size is None:
        return None if _PACKED.get() is None else Reach("all", None, _PACKED.get())
    kind = "chunk" if _is_chunked(mask_function, local_size, queries.device) else "window"
    return Reach(kind, local_size, _PACKED.get())


def _is_chunked(mask_function: Callable[..., Any], size: int, device: torch.device) -> bool:
    """Whether a pattern of ``size`` is in chunks: of two queries that follow each other, at most one begins a window's
    length after the start of its chunk. A window of one position and chunks of one are the same."""
    queries = torch.arange(size + 1, size + 3, device=device)
    zero = torch.zeros_like(queries)
    seen = mask_function(zero, zero, queries, queries - size + 1)
    return not bool(seen.all())


def in_chunks(segments: list[Segment], size: int) -> list[Segment]:
    """The documents of ``segments`` cut into chunks of ``size`` positions, each from its own start."""
    found: list[Segment] = []
    for row, start, end, is_document in segments:
        if not is_document:
            found.append((row, start, end, False))
            continue
        found.extend((row, begin, min(begin + size, end), True) for begin in range(start, end, size))
    return found


def check_causal(mask: torch.Tensor, segments: list[Segment], who: str) -> None:
    """Raise UnknownAttention unless ``mask`` [B or 1, 1, L, L], boolean or added to the scores, is plainly causal
    inside every document: a model that makes its own mask may have put a bias or a window into it."""
    if mask.dim() != 4 or mask.shape[1] != 1:
        raise UnknownAttention(f"{who} makes a mask of its own, of shape {tuple(mask.shape)}")
    for row, start, end, is_document in segments:
        if not is_document:
            continue
        part = mask[row % mask.shape[0], 0, start:end, start:end]
        sees = part if part.dtype == torch.bool else part == 0
        hides = ~part if part.dtype == torch.bool else part <= torch.finfo(part.dtype).min / 2
        causal = torch.ones_like(sees).tril_()
        if part.shape[-1] != end - start or not bool(torch.where(causal, sees, hides).all()):
            raise UnknownAttention(f"{who} makes a mask of its own that isn't plainly causal")
