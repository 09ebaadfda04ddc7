"""Which checkpoints are ones of a run: also those of versions that had fewer settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher.config.schema import Config
from tests.trainer.models.conftest import composed
from trainer.checkpoints.checkpointer import check_same_run, identity, world_of
from trainer.checkpoints.manifest import InvalidCheckpointError, Manifest, Position

SINCE = {
    **{"dataset.weights": [], "dataset.split": "train", "dataset.too_long": "cut"},
    **{f"dataset.columns.{name}": name for name in ("prompt", "completion", "text")},
    **{"dataset.format": None, "dataset.thinking": None, "lora.bias": "none"},
}


@pytest.fixture(scope="module")
def config() -> Config:
    return composed("experiment=tiny", "method=lora")


def manifest(config: Config, recorded: dict[str, Any]) -> Manifest:
    return Manifest(4, 0.5, Position(0, 4), world_of(config), recorded, "", {}, "", {})


def test_a_checkpoint_that_lacks_newer_settings_or_names_their_defaults_is_one_of_the_run(config):
    wanted = identity(config, "data", "base")
    older = {key: value for key, value in wanted.items() if key not in SINCE}
    for recorded in (wanted, older, {**older, **SINCE}):
        check_same_run(manifest(config, recorded), config, wanted)


@pytest.mark.parametrize(("override", "key"), [("dataset.too_long=drop", "dataset.too_long"), ("lora.r=3", "lora.r")])
def test_other_settings_are_of_another_run_on_either_side(config, override, key):
    other = composed("experiment=tiny", "method=lora", override)
    ours, theirs = identity(config, "data", "base"), identity(other, "data", "base")
    for wanted, recorded in ((ours, theirs), (theirs, ours), (theirs, {**ours, **SINCE})):
        with pytest.raises(InvalidCheckpointError, match=f"it is of another run: {key} is "):
            check_same_run(manifest(config, recorded), config, wanted)


def test_fewer_processes_are_told(config):
    wanted = identity(config, "data", "base")
    two = replace(manifest(config, wanted), world=replace(world_of(config), size=2, data_parallel=2))
    with pytest.raises(InvalidCheckpointError, match="it was written by 2 processes, this run has 1 "):
        check_same_run(two, config, wanted)
