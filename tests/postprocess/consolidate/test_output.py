"""The result is there whole or not at all, whatever happens to the process and to the disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from launcher.atomic_directory import MARKER, noted_whole, work_of
from launcher.errors import TrntuneError, UsageError
from launcher.model_dir.files import INDEX
from launcher.paths import ROOT
from postprocess.consolidate.neuron import NeuronSource
from postprocess.consolidate.run import Options, consolidate
from tests.limits import PATIENCE
from tests.postprocess.consolidate.neuron_shards import DATA, copied, digests, result

RUN = DATA / "full_gqa"
# A process that does what it is told when it reads its eleventh tensor.
PROCESS = """
import os, signal, sys
from pathlib import Path
from postprocess.consolidate.neuron import NeuronSource
from postprocess.consolidate.run import Options, consolidate

blocks, count = NeuronSource.blocks, 0

def counting(self, name):
    global count
    count += 1
    if count == 11:
        {action}
    return blocks(self, name)

NeuronSource.blocks = counting
consolidate(Path(sys.argv[1]), Path(sys.argv[2]), Options(shard_bytes=int(sys.argv[3])))
"""
SMALL_SHARDS = Options(shard_bytes=20_000)
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
WAIT = "print('waiting', flush=True); sys.stdin.read()"


def start(action: str, out: Path, shard_bytes: int = 10**9) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS.format(action=action), str(RUN), str(out), str(shard_bytes)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def is_right(out: Path) -> bool:
    return digests(result(out)) == json.loads((RUN / "expected.json").read_text())


def test_killed_in_the_middle_and_started_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(KILL, out)
    assert process.wait(timeout=PATIENCE) == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / "out.tmp" / "model.safetensors").exists()
    consolidate(RUN, out)
    assert is_right(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """The output of a consolidation that was killed with some files whole; what is read from now on."""
    process = start(KILL, tmp_path / "out", SMALL_SHARDS.shard_bytes)
    assert process.wait(timeout=PATIENCE) == -signal.SIGKILL
    read: list[str] = []
    blocks = NeuronSource.blocks

    def counting(self: NeuronSource, name: str) -> Iterator[torch.Tensor]:
        read.append(name)
        return blocks(self, name)

    monkeypatch.setattr(NeuronSource, "blocks", counting)
    return tmp_path / "out", read


def whole_files(out: Path) -> dict[str, int]:
    """When the files that the killed process had finished were written, in ns."""
    work = work_of(out)
    return {name: (work / name).stat().st_mtime_ns for name in noted_whole(work)}


def test_after_a_kill_what_was_whole_is_not_written_again(killed: tuple[Path, list[str]]) -> None:
    out, read = killed
    whole = whole_files(out)
    assert 1 < len(whole) < len(list(work_of(out).glob("*.safetensors")))
    consolidate(RUN, out, SMALL_SHARDS)
    assert is_right(out)
    assert {name: (out / name).stat().st_mtime_ns for name in whole} == whole
    kept = {name for name, file in json.loads((out / INDEX).read_text())["weight_map"].items() if file in whole}
    assert kept
    assert sorted(read) == sorted(set(result(out)) - kept)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_after_a_kill_another_input_or_option_begins_anew(killed: tuple[Path, list[str]]) -> None:
    out, read = killed
    consolidate(RUN, out, Options(shard_bytes=25_000))
    assert is_right(out)
    assert sorted(read) == sorted(result(out))


@pytest.mark.parametrize("damage", ["shorter", "another header", "gone", "marker"])
def test_a_file_that_changed_after_the_kill_is_written_again(damage: str, killed: tuple[Path, list[str]]) -> None:
    out, _ = killed
    work = work_of(out)
    first = work / min(whole_files(out))
    if damage == "shorter":
        os.truncate(first, first.stat().st_size - 1)
    elif damage == "another header":
        content = bytearray(first.read_bytes())
        content[20] ^= 1
        first.write_bytes(content)
    elif damage == "gone":
        first.unlink()
    else:
        (work / MARKER).write_bytes(b"\xff\n" + first.name.encode())
    consolidate(RUN, out, SMALL_SHARDS)
    assert is_right(out)


def test_two_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(WAIT, out)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    with pytest.raises(TrntuneError, match=r"out\.tmp is being written by another process"):
        consolidate(RUN, out)
    process.communicate("", timeout=PATIENCE)
    assert process.returncode == 0
    assert is_right(out)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), TrntuneError("bad")])
def test_an_error_leaves_nothing(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: NeuronSource, name: str) -> torch.Tensor:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(NeuronSource, "blocks", fail)
        with pytest.raises((KeyboardInterrupt, TrntuneError)):
            consolidate(RUN, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    consolidate(RUN, tmp_path / "out")
    assert is_right(tmp_path / "out")


def test_what_is_in_the_way_of_the_work_stays(tmp_path: Path) -> None:
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "thesis.txt").touch()
    with pytest.raises(TrntuneError, match=r"out\.tmp is in the way.*: move it or give another output"):
        consolidate(RUN, tmp_path / "out")
    assert (tmp_path / "out.tmp" / "thesis.txt").exists()


def test_a_finished_result_is_no_leftover(tmp_path: Path) -> None:
    consolidate(RUN, tmp_path / "out.tmp")
    (tmp_path / "out.tmp" / "notes.txt").touch()
    with pytest.raises(TrntuneError, match=r"out\.tmp is in the way"):
        consolidate(RUN, tmp_path / "out")
    assert is_right(tmp_path / "out.tmp")
    assert (tmp_path / "out.tmp" / "notes.txt").exists()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrntuneError, match=r"out\.tmp cannot be written: Not a directory"):
        consolidate(RUN, tmp_path / "file" / "out")


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 10**6))
    with pytest.raises(TrntuneError, match=r"has 0\.00 GB free and 0\.07 GB are needed"):
        consolidate(RUN, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_same_input_is_done_once(tmp_path: Path) -> None:
    run, out = copied("full_gqa", tmp_path), tmp_path / "out"
    first = consolidate(run, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert consolidate(run, out) == {**first, "reused": True}
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(UsageError, match="another input or of other options"):
        consolidate(run, out, Options(shard_bytes=10**5))
    os.utime(next((run / "shards" / "model").glob("*.tensors/tensor_3.pt")))
    with pytest.raises(UsageError, match="another input or of other options"):
        consolidate(run, out)


def test_a_result_that_changed_is_not_taken_for_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    consolidate(RUN, out)
    with (out / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(UsageError, match=r"model\.safetensors changed since"):
        consolidate(RUN, out)


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").touch()
    with pytest.raises(UsageError, match="exists and is not a consolidation's result"):
        consolidate(RUN, out)
    (out / "thesis.txt").unlink()
    consolidate(RUN, out)  # an empty directory may be filled
    assert is_right(out)


def test_the_output_is_no_part_of_the_input(tmp_path: Path) -> None:
    run = copied("full_gqa", tmp_path)
    for out in (run, run / "shards", run / "shards" / "out", run / ".." / run.name):
        with pytest.raises(UsageError, match="overlaps the input"):
            consolidate(run, out)
    assert not (run / "out").exists()
    consolidate(run, run / "model")  # beside shards/ is where a run keeps its model
    assert is_right(run / "model")


def test_the_output_is_no_part_of_the_base(tmp_path: Path) -> None:
    base = tmp_path / "mine.tmp"
    base.mkdir()
    shutil.copyfile(RUN / "config.json", base / "config.json")
    for out in (base, base / "out", tmp_path / "mine", tmp_path):
        with pytest.raises(UsageError, match="overlaps the input"):
            consolidate(RUN, out, Options(base=base))
    assert [path.name for path in tmp_path.rglob("*")] == ["mine.tmp", "config.json"]
