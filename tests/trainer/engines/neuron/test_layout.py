"""Every part of a split model is written by one process and read by those that hold it."""

from __future__ import annotations

from collections import Counter

import pytest

from trainer.engines.neuron.layout import Rank, best_file, metadata_file, optimizer_file, rank_of, weights_file


def ranks(data: int, pipeline: int, tensor: int) -> list[Rank]:
    return [rank_of(number, tensor, pipeline) for number in range(data * pipeline * tensor)]


def test_the_published_layout_tp8_dp4() -> None:
    assert rank_of(0, 8, 1) == Rank(0, data=0, pipeline=0, tensor=0)
    assert rank_of(7, 8, 1) == Rank(7, data=0, pipeline=0, tensor=7)
    assert rank_of(31, 8, 1) == Rank(31, data=3, pipeline=0, tensor=7)
    assert rank_of(12, 4, 2) == Rank(12, data=1, pipeline=1, tensor=0)


@pytest.mark.parametrize("shape", [(4, 1, 8), (2, 2, 2), (1, 1, 1), (16, 1, 4)])
@pytest.mark.parametrize("zero_1", [True, False])
def test_no_file_has_two_writers_and_every_reader_finds_its_own(shape: tuple[int, int, int], zero_1: bool) -> None:
    everyone = ranks(*shape)
    written: Counter[str] = Counter()
    for rank in everyone:
        if rank.holds_first_copy:
            written.update([weights_file("full", rank), best_file(rank)])
            written.update([metadata_file("full", rank)] if rank.tensor == 0 else [])
        if rank.holds_first_copy or zero_1:
            written[optimizer_file(rank, zero_1)] += 1
    assert set(written.values()) == {1}
    for rank in everyone:
        wanted = {weights_file("full", rank), best_file(rank), optimizer_file(rank, zero_1)}
        assert wanted <= set(written), rank


def test_names_are_those_that_consolidate_looks_for() -> None:
    rank = rank_of(5, 2, 2)
    assert weights_file("full", rank) == "shards/model/dp_rank_00_tp_rank_01_pp_rank_00.safetensors"
    assert metadata_file("lora", rank) == "adapter_default/adapter_shards/mp_metadata_pp_rank_0.json"
