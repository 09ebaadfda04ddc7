"""Parts of tensors: as torch cuts them, and put together for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec

from trainer.checkpoints.parts import PARTS, Layout, part_file
from trainer.engines.torch.parts import Regrouped, local, part_like, rows_of
from trainer.engines.torch.sharding import models_at_once

TENSORS = {
    "seven": torch.arange(21.0).view(7, 3),
    "two": torch.tensor([1.0, 2.0]),
    "columns": torch.arange(20.0).view(5, 4),
    "rows.exp_avg": torch.arange(16.0).view(8, 2),  # of the optimizer: its axis is the parameter's
    "rows.step": torch.tensor(5.0),
}
BUFFER = {"buffer": torch.arange(4.0)}


CUTS = {"columns": 1, "rows": 0}
LAYOUTS = [Layout(groups * tensor, tensor, ["buffer"], CUTS) for groups in (1, 2, 3) for tensor in (1, 2, 4)]


class Stored:
    """A checkpoint in memory that ranks have written."""

    step = 3

    def __init__(self, layout: Layout) -> None:
        ranks = range(layout.ranks)
        self.files = {part_file("w.safetensors", rank, layout.ranks): part(rank, layout) for rank in ranks}
        self.documents = {PARTS: layout.document()} if layout.ranks > 1 else {}

    def has(self, name: str) -> bool:
        return name in self.files or name in self.documents

    def document(self, name: str) -> Any:
        return self.documents[name]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return self.files[name]

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        return {key: tuple(tensor.shape) for key, tensor in self.files[name].items()}


def part(rank: int, layout: Layout) -> dict[str, torch.Tensor]:
    """What torch.chunk, which DTensor and FSDP2 cut by, gives a rank; nothing of a tensor that has no more chunks."""
    found = dict(BUFFER)
    for name, tensor in TENSORS.items():
        axis = CUTS.get(name.partition(".")[0])
        cut = tensor if axis is None or not tensor.dim() else tensor.chunk(layout.tensor, axis)[rank % layout.tensor]
        chunks = cut.chunk(layout.groups) if cut.dim() else [cut] * layout.groups
        group = rank // layout.tensor
        found[name] = chunks[group] if group < len(chunks) else cut[:0]
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9])
def test_rows_are_those_that_torch_gives_a_rank(rows: int, ranks: int) -> None:
    chunks = torch.arange(rows).chunk(ranks)
    for rank in range(ranks):
        expected = chunks[rank].tolist() if rank < len(chunks) else []
        assert list(range(*rows_of(rows, rank, ranks))) == expected


@pytest.mark.parametrize("there", LAYOUTS, ids=lambda layout: f"{layout.groups}x{layout.tensor}")
@pytest.mark.parametrize("here", LAYOUTS, ids=lambda layout: f"{layout.groups}x{layout.tensor}")
def test_a_rank_gets_its_part_whichever_ranks_have_written(there: Layout, here: Layout) -> None:
    for rank in range(here.ranks):
        found = Regrouped(Stored(there), rank, here).tensors("w.safetensors")
        expected = part(rank, here)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("model", "available", "found"),
    [(None, 10**12, 1), (32 * 10**9, 2 * 10**12, 40), (32 * 10**9, 100 * 10**9, 1), (10**9, 10**8, 1)],
)
def test_as_many_models_are_read_at_a_time_as_have_room(model: int | None, available: int, found: int):
    assert models_at_once(model, available) == found


@pytest.fixture
def alone() -> Iterator[dist.ProcessGroup]:
    """A group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_part_of_a_tensor_in_host_memory_stays_there_whatever_the_mesh_is_of(alone: dist.ProcessGroup):
    """As FSDP2 lays what parallelism.cpu_offload leaves there: its mesh is the devices'."""
    here = DTensor.from_local(torch.zeros(3, 2), DeviceMesh.from_group(alone, "cpu"), [Shard(0)], run_check=False)
    mesh = DeviceMesh.from_group(alone, "cuda")
    spec = DTensorSpec(mesh, here.placements, here._spec.tensor_meta)
    parameter = DTensor(local(here), spec, requires_grad=False)
    part = torch.arange(6.0).view(3, 2)
    made = part_like(parameter, part)
    assert isinstance(made, DTensor)
    assert (made.device_mesh, made.placements, made.shape) == (mesh, parameter.placements, parameter.shape)
    assert local(made).device.type == "cpu"
    assert torch.equal(local(made), part)
    step = torch.tensor(5.0)
    assert part_like(parameter, step) is step
