"""Every part of a split model is written by one process and read by those that hold it."""

from __future__ import annotations

from collections import Counter

import pytest

from launcher.config.schema import ParallelismConfig
from launcher.errors import TrntuneError
from tests.trainer.engines.neuron.places import ranks
from trainer.engines.neuron.layout import (
    Rank,
    best_file,
    metadata_file,
    optimizer_file,
    reporters,
    weights_file,
)


def parallel(data: int, pipeline: int, tensor: int) -> ParallelismConfig:
    return ParallelismConfig(data_parallel=data, pipeline_parallel=pipeline, tensor_parallel=tensor)


def test_one_process_of_each_replica_of_the_published_layout_tp8_dp4_reports() -> None:
    assert reporters(ranks(4, 1, 8), parallel(4, 1, 8)) == [0, 8, 16, 24]


def test_of_a_pipeline_the_last_stage_reports() -> None:
    """It alone has the loss; all replicas of the first stage have lower numbers."""
    assert reporters(ranks(2, 2, 2), parallel(2, 2, 2)) == [4, 6]


def test_one_process_of_each_replica_reports_where_four_ranks_of_a_model_are_no_neighbours() -> None:
    """trn1.32xlarge with tensor_parallel=4: the first model is on 0, 8, 16 and 24, the second on 1, 9, 17 and 25."""
    everyone = [Rank(number, data=number % 8, pipeline=0, tensor=number // 8) for number in range(32)]
    assert reporters(everyone, parallel(8, 1, 4)) == list(range(8))


@pytest.mark.parametrize(
    ("everyone", "sizes"),
    [
        (ranks(2, 1, 2), (1, 1, 4)),
        (ranks(2, 1, 2)[:3], (2, 1, 2)),
        ([Rank(number, 0, 0, 0) for number in range(4)], (2, 1, 2)),
        (ranks(2, 1, 2)[::-1], (2, 1, 2)),
    ],
    ids=["other sizes", "one missing", "one place", "other numbers"],
)
def test_other_groups_than_those_of_the_configuration_are_refused(
    everyone: list[Rank], sizes: tuple[int, int, int]
) -> None:
    with pytest.raises(TrntuneError, match="neuronx_distributed made other groups than data"):
        reporters(everyone, parallel(*sizes))


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
    rank = Rank(5, data=1, pipeline=0, tensor=1)
    assert weights_file("full", rank) == "shards/model/dp_rank_00_tp_rank_01_pp_rank_00.safetensors"
    assert metadata_file("lora", rank) == "adapter_default/adapter_shards/mp_metadata_pp_rank_0.json"
