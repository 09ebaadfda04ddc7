"""Whatever became of a checkpoint's files, it is not used, and the one before it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.trainer.checkpoints.test_commit import manifest, snapshot
from trainer.checkpoints.manifest import InvalidCheckpointError, Manifest, from_text, to_text
from trainer.checkpoints.peers import SingleProcess
from trainer.checkpoints.store import Store
from trainer.checkpoints.writer import write


@pytest.fixture
def root(tmp_path) -> Path:
    for step in (1, 2):
        write(snapshot(step), Store(tmp_path / "checkpoints"), SingleProcess(), keep=5)
    return tmp_path / "checkpoints"


def selected(root: Path, usable=lambda _: None) -> tuple[int | None, list[str]]:
    selection = Store(root).select(usable)
    return selection.manifest and selection.manifest.step, [rejected.reason for rejected in selection.rejected]


FILES = ("weights/model.safetensors", "rng-0.safetensors", "run.json", "manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(root, name):
    (root / "step-2" / name).unlink()
    step, [reason] = selected(root)
    assert step == 1
    assert name in reason


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte(root, name):
    """Every byte of the small files, every 97th of the large one."""
    file = root / "step-2" / name
    good = file.read_bytes()
    for place in range(0, len(good), 97 if len(good) > 2000 else 7):
        file.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        step, [reason] = selected(root)
        assert step == 1, place
        assert "damaged" in reason or "can't be read" in reason or "format" in reason, reason
    file.write_bytes(good)
    assert selected(root) == (2, [])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [0, 1, -2])
def test_a_truncated_file(root, name, size):
    file = root / "step-2" / name
    file.write_bytes(file.read_bytes()[:size])
    step, [reason] = selected(root)
    assert step == 1
    assert name in reason


def test_a_manifest_of_an_older_save(root):
    shutil.copy(root / "step-1" / "manifest.json", root / "step-2" / "manifest.json")
    step, [reason] = selected(root)
    assert (step, reason) == (1, "manifest.json is of step 1")


def test_a_directory_under_another_steps_name(root):
    (root / "step-2").rename(root / "step-7")
    step, [reason] = selected(root)
    assert (step, reason) == (1, "manifest.json is of step 2")


def test_a_format_of_the_future(root):
    file = root / "step-2" / "manifest.json"
    content = json.loads(file.read_text())
    content["format"] = 2
    file.write_text(json.dumps(content))
    step, [reason] = selected(root)
    assert (step, reason) == (1, "manifest.json has format 2, this version reads 1")


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname"])
def test_a_manifest_that_names_files_outside_of_the_checkpoint(root, name):
    file = root / "step-2" / "manifest.json"
    known = from_text(file.read_text())
    entry = known.files["run.json"]
    file.write_text(to_text(Manifest(**{**known.__dict__, "files": {name: entry}})))
    step, [reason] = selected(root)
    assert step == 1
    assert "not in the checkpoint" in reason


def test_one_that_is_of_another_run(root):
    def usable(found: Manifest) -> None:
        if found.step == 2:
            raise InvalidCheckpointError("it is of another run")

    assert selected(root, usable) == (1, ["it is of another run"])


def test_none_left(root):
    for step in (1, 2):
        (root / f"step-{step}" / "run.json").unlink()
    step, reasons = selected(root)
    assert step is None
    assert reasons == ["run.json is missing"] * 2


def test_what_was_never_finished_is_not_looked_at(root):
    shutil.copytree(root / "step-2", root / "step-3.tmp")
    (root / "step-4").mkdir()
    step, [reason] = selected(root)
    assert step == 2
    assert reason == "it has no manifest.json: it was never finished"


def test_a_manifest_comes_back_as_it_was():
    assert from_text(to_text(manifest(3))) == manifest(3)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{", '{"sha256": 1}', "\x00"])
def test_text_that_is_no_manifest(text):
    with pytest.raises(InvalidCheckpointError, match=r"damaged|format"):
        from_text(text)
