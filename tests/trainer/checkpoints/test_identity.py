"""Which checkpoints are ones of a run: also those of versions that had fewer settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher.config.schema import Config
from tests.trainer.models.conftest import composed
from trainer.checkpoints.checkpointer import check_same_run, identity, world_of
from trainer.checkpoints.manifest import InvalidCheckpointError, Manifest, Position
from trainer.data.prepare import Digests

SINCE = {
    **{"dataset.weights": [], "dataset.split": "train", "dataset.too_long": "cut"},
    **{f"dataset.columns.{name}": name for name in ("prompt", "completion", "text")},
    **{"dataset.format": None, "dataset.thinking": None, "lora.bias": "none"},
}

DATA = Digests("read by tokenizers 0.23", "rows")


@pytest.fixture(scope="module")
def config() -> Config:
    return composed("experiment=tiny", "method=lora")


def manifest(config: Config, recorded: dict[str, Any]) -> Manifest:
    return Manifest(4, 0.5, Position(0, 4), world_of(config), recorded, "", {}, "", {})


def test_a_checkpoint_that_lacks_newer_settings_or_names_their_defaults_is_one_of_the_run(config):
    wanted = identity(config, DATA, "base")
    older = {key: value for key, value in wanted.items() if key not in SINCE}
    for recorded in (wanted, older, {**older, **SINCE}):
        check_same_run(manifest(config, recorded), config, wanted)


@pytest.mark.parametrize(("override", "key"), [("dataset.too_long=drop", "dataset.too_long"), ("lora.r=3", "lora.r")])
def test_other_settings_are_of_another_run_on_either_side(config, override, key):
    other = composed("experiment=tiny", "method=lora", override)
    ours, theirs = identity(config, DATA, "base"), identity(other, DATA, "base")
    for wanted, recorded in ((ours, theirs), (theirs, ours), (theirs, {**ours, **SINCE})):
        with pytest.raises(InvalidCheckpointError, match=f"it is of another run: {key} is "):
            check_same_run(manifest(config, recorded), config, wanted)


def test_fewer_processes_are_told(config):
    wanted = identity(config, DATA, "base")
    two = replace(manifest(config, wanted), world=replace(world_of(config), size=2, data_parallel=2))
    with pytest.raises(InvalidCheckpointError, match="it was written by 2 processes, this run has 1 "):
        check_same_run(two, config, wanted)


def test_rows_are_the_same_whichever_libraries_read_them(config):
    recorded = identity(config, Digests("read by tokenizers 0.22", "rows"), "base")
    check_same_run(manifest(config, recorded), config, identity(config, DATA, "base"))
    other = identity(config, Digests(DATA.versioned, "other rows"), "base")
    with pytest.raises(InvalidCheckpointError, match=r"rows_sha256 is rows there, other rows here$"):
        check_same_run(manifest(config, recorded), config, other)


def test_an_earlier_version_knew_its_rows_only_by_the_libraries_that_read_them(config):
    wanted = identity(config, DATA, "base")
    recorded = {key: value for key, value in wanted.items() if key != "rows_sha256"}
    check_same_run(manifest(config, recorded), config, wanted)
    older = replace(manifest(config, {**recorded, "data_sha256": "x"}), versions={"transformers": "4.40.0"})
    told = "data_sha256 is x there, .* here: other rows, or other libraries read them .it was written with transformers"
    with pytest.raises(InvalidCheckpointError, match=told):
        check_same_run(older, config, wanted)
