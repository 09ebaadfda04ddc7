"""The benchmark measures what it says: its checkpoint is one that optimum-neuron could have written."""

from __future__ import annotations

from pathlib import Path

from benchmarks.consolidate_data import SHAPES, write_checkpoint
from postprocess.consolidate.run import consolidate
from tests.postprocess.consolidate.neuron_shards import (
    consolidated_by_optimum_neuron,
    digests,
    rank_tensors,
    read_metadata,
    result,
)


def test_its_checkpoint_is_consolidated_as_optimum_neuron_does_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", SHAPES["tiny"])
    consolidate(tmp_path / "run", tmp_path / "out")
    shards = tmp_path / "run" / "shards"
    theirs = consolidated_by_optimum_neuron(rank_tensors(shards), [read_metadata(shards)], None)
    assert digests(result(tmp_path / "out")) == digests(theirs)
