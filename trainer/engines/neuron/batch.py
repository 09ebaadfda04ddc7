"""Rows as optimum-neuron's models take them: always the same shapes, so that the compiler sees one graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer.data.prepare import Row
from trainer.data.tokenize import IGNORE

PADDING = -1


def labels_of(targets: torch.Tensor) -> torch.Tensor:
    """The collator's targets [B, L] (what a position must predict) as labels [B, L] (what a position holds): the models
    shift by one themselves. The last target of a row is never set, since no position follows it."""
    labels = torch.full_like(targets, IGNORE)
    labels[:, 1:] = targets[:, :-1]
    return labels


def document_numbers(documents: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """int32 [rows, length]: which document of the batch a position belongs to, PADDING where it is none's.

    ``documents`` is int64 [n, 3]: row, first position, position after the last.
    """
    numbers = torch.full((rows, length), PADDING, dtype=torch.int32)
    for number, (row, start, end) in enumerate(documents.tolist()):
        numbers[row, start:end] = number
    return numbers


def attention_bias(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B, 1, L, L], added to the attention scores: 0 where a position may look, the lowest finite number elsewhere.

    A position sees itself and what lies before it in its own document; padding sees padding, so that no row of scores
    is all masked. Made of ``numbers`` on the device they are on: only B x L numbers travel to it.
    """
    length = numbers.shape[1]
    same = numbers[:, None, :, None] == numbers[:, None, None, :]
    position = torch.arange(length, device=numbers.device)
    allowed = same & (position[:, None] >= position[None, :])
    bias = torch.zeros(allowed.shape, dtype=dtype, device=numbers.device)
    return bias.masked_fill(~allowed, torch.finfo(dtype).min)


def host_batch(batch: dict[str, torch.Tensor], packing: bool) -> dict[str, torch.Tensor]:
    """What goes to the device for one collated batch; with ``packing`` also what keeps documents apart.

    Without packing a row is one document and padding follows it, so causal attention alone is exact.
    """
    inputs = {"input_ids": batch["input_ids"], "labels": labels_of(batch["targets"])}
    if packing:
        inputs["position_ids"] = batch["position_ids"]
        inputs["documents"] = document_numbers(batch["documents"], *batch["input_ids"].shape)
    return inputs


def trained_labels(rows: list[Row]) -> int:
    """Labels that the loss counts in ``rows``: the first token of a document is never predicted."""
    return sum(label != IGNORE for row in rows for example in row for label in example.labels[1:])


def filled(rows: Sequence[Row], size: int) -> list[Row]:
    """``rows`` with rows of padding behind them, to ``size``: a smaller last batch would be another graph."""
    return [*rows, *([] for _ in range(size - len(rows)))]
