"""Parts of tensors: as torch cuts them, and put together for any number of ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.checkpoints.parts import PARTS, part_file
from trainer.engines.torch.parts import Regrouped, rows_of

TENSORS = {"seven": torch.arange(21.0).view(7, 3), "two": torch.tensor([1.0, 2.0]), "step": torch.tensor(5.0)}
BUFFER = {"buffer": torch.arange(4.0)}


class Stored:
    """A checkpoint in memory that ``ranks`` have written."""

    step = 3

    def __init__(self, ranks: int) -> None:
        self.files = {part_file("w.safetensors", rank, ranks): part(rank, ranks) for rank in range(ranks)}
        self.documents = {PARTS: {"ranks": ranks, "whole": ["buffer"]}} if ranks > 1 else {}

    def has(self, name: str) -> bool:
        return name in self.files or name in self.documents

    def document(self, name: str) -> Any:
        return self.documents[name]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return self.files[name]

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        return {key: tuple(tensor.shape) for key, tensor in self.files[name].items()}


def part(rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """What torch.chunk, which FSDP2 cuts by, gives a rank; nothing of a tensor that has no more chunks."""
    found = dict(BUFFER)
    for name, tensor in TENSORS.items():
        chunks = tensor.chunk(ranks) if tensor.dim() else [tensor] * ranks
        found[name] = chunks[rank] if rank < len(chunks) else tensor[:0]
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9])
def test_rows_are_those_that_torch_gives_a_rank(rows: int, ranks: int) -> None:
    chunks = torch.arange(rows).chunk(ranks)
    for rank in range(ranks):
        expected = chunks[rank].tolist() if rank < len(chunks) else []
        assert list(range(*rows_of(rows, rank, ranks))) == expected


@pytest.mark.parametrize("there", [1, 2, 3, 4])
@pytest.mark.parametrize("here", [1, 2, 3, 4])
def test_a_rank_gets_its_part_whichever_ranks_have_written(there: int, here: int) -> None:
    for rank in range(here):
        found = Regrouped(Stored(there), rank, here, ["buffer"]).tensors("w.safetensors")
        expected = part(rank, here)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), name
