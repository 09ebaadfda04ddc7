"""Rows to tensors of one fixed shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from launcher.architecture.attention_pairs import Extents, mean_pairs
from trainer.data.packed import Row
from trainer.data.tokenize import IGNORE
from trainer.metrics.throughput import Counts


@dataclass(frozen=True)
class Collator:
    """Makes [B, max_length] batches of packed rows."""

    max_length: int
    pad_token_id: int
    ids: torch.dtype = torch.int64
    """of tokens, targets and positions; int32 for a device that is slow with int64"""

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The batch of ``rows``:

        - input_ids [B, L] of ``ids``, padded at the end
        - targets [B, L] of ``ids``, already shifted: the token that a position must predict within its own document, or
          -100
        - position_ids [B, L] of ``ids``, from 0 in every document
        - documents [n, 3] int64: row, first position, position after the last
        - num_examples, num_tokens (real ones), num_trained (targets that count): int64 scalars
        """
        shape = (len(rows), self.max_length)
        input_ids = torch.full(shape, self.pad_token_id, dtype=self.ids)
        targets = torch.full(shape, IGNORE, dtype=self.ids)
        position_ids = torch.zeros(shape, dtype=self.ids)
        documents: list[tuple[int, int, int]] = []
        for number, row in enumerate(rows):
            start = 0
            for example in row:
                end = start + len(example.input_ids)
                input_ids[number, start:end] = torch.tensor(example.input_ids, dtype=self.ids)
                targets[number, start : end - 1] = torch.tensor(example.labels[1:], dtype=self.ids)
                position_ids[number, start:end] = torch.arange(end - start)
                documents.append((number, start, end))
                start = end
        return {
            "input_ids": input_ids,
            "targets": targets,
            "position_ids": position_ids,
            "documents": torch.tensor(documents, dtype=torch.int64).reshape(-1, 3),
            "num_examples": torch.tensor(len(documents)),
            "num_tokens": torch.tensor(sum(end - start for _, start, end in documents)),
            "num_trained": (targets != IGNORE).sum(),
        }


def counts_of(batch: dict[str, torch.Tensor], extents: Extents = ()) -> Counts:
    """What one micro batch holds, before its loss is known; ``extents``: how far each layer's attention reaches."""
    lengths = batch["documents"][:, 2] - batch["documents"][:, 1]
    return Counts(
        examples=int(batch["num_examples"]),
        tokens=int(batch["num_tokens"]),
        positions=batch["input_ids"].numel(),
        trained=int(batch["num_trained"]),
        pairs=float(mean_pairs(lengths.double(), extents).sum()),
    )
