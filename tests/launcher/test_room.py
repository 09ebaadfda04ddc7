"""Room on disk: what a run has there at its fullest, and what is said before anything is created."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.room import SLACK, Sizes, little_room, room_of
from tests.launcher.conftest import single

SIZES = Sizes(weights=10, checkpoint=30, merged=100)
# A checkpoint of tiny_llama's adapter has 86 kB; a hundred million of them is more than any disk here.
MANY = ("training.max_steps=100000000", "training.epochs=100000000", "training.save_every=1")


@pytest.mark.parametrize(
    ("overrides", "steps", "checkpoints", "one_more"),
    [
        (["training.save_every=null"], 100, 0, 0),
        (["training.save_every=10"], 5, 1, 0),
        (["training.save_every=10"], 20, 2, 0),
        (["training.save_every=10"], 21, 2, 1),
        (["training.save_every=10", "training.keep_checkpoints=9"], None, 9, 1),
    ],
)
def test_the_newest_checkpoints_are_kept_and_one_more_is_written(
    overrides: list[str], steps: int | None, checkpoints: int, one_more: int
) -> None:
    found = room_of(single(*overrides).config, SIZES, steps)
    assert (found.checkpoints, found.one_more) == (30 * checkpoints, 30 * one_more)
    assert found.final == 110
    assert found.most == found.kept == 30 * checkpoints + 110 + SLACK  # the last checkpoint comes before the weights


def test_a_model_in_parts_is_there_twice() -> None:
    stages = "stages=[fetch,compile,train,consolidate]"
    found = room_of(single("accelerator=trn1_32xlarge", stages, "training.save_every=null").config, Sizes(10, 30), 5)
    assert found.final == 20


def test_the_runs_of_a_sweep_stay_beside_each_other(tmp_path: Path) -> None:
    room = room_of(single("training.save_every=null").config, Sizes(10**15, 0), 5)
    assert little_room(tmp_path / "not" / "there", [room] * 3, there=4 * 10**15) is None
    fault = little_room(tmp_path / "not" / "there", [room] * 3, there=2 * 10**15)
    assert fault is not None
    assert "needs about 3000000.00 GB there (3 runs, the first: adapter 1000000.00 GB)" in fault


def test_too_little_room_is_planned_and_refused_before_anything_is_created(answer, cwd: Path) -> None:
    given = ("experiment=tiny", *MANY, "training.keep_checkpoints=1000000000", "tracking=none")
    refused = answer(*given)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {cwd / 'outputs'}: needs about ")
    assert "100000000 checkpoints of 0.00 GB" in refused.stderr
    assert "lower training.keep_checkpoints" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert list(cwd.iterdir()) == []
    planned = answer(*given, "plan=true")
    assert planned.returncode == 1
    assert "DOES NOT FIT" in planned.stdout
