"""A merge's directory appears whole or not at all, and takes nobody's place."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from launcher.atomic_directory import MARKER, staged
from launcher.config.schema import Config, MergeConfig
from launcher.errors import TrntuneError, UsageError
from launcher.io import write_json
from launcher.run_dir.layout import RunDir
from postprocess.merge import MergeOptions, merge, stage
from postprocess.merge.__main__ import main
from tests.limits import until
from tests.postprocess.merge.adapters import QUICK, configure, refused
from tests.postprocess.merge.models import peft_merge, stored


def test_what_is_in_the_way_of_the_work_stays(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A stranger's, and a finished merge that happens to be called OUT.tmp."""
    merge(base, adapter, tmp_path / "out.tmp", QUICK)
    refused(base, adapter, r"out\.tmp is in the way.*: move it or give another output directory")
    assert (tmp_path / "out.tmp" / "merge.json").is_file()
    shutil.rmtree(tmp_path / "out.tmp")
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "thesis.txt").write_text("x")
    refused(base, adapter, r"out\.tmp is in the way")
    assert (tmp_path / "out.tmp" / "thesis.txt").read_text() == "x"
    elsewhere = (tmp_path / "out.tmp").rename(tmp_path / "elsewhere")
    (elsewhere / MARKER).touch()
    (tmp_path / "out.tmp").symlink_to(elsewhere)
    refused(base, adapter, r"out\.tmp is in the way")
    assert (elsewhere / "thesis.txt").read_text() == "x"


def test_a_stage_that_was_killed_while_it_removed_the_last_result(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    adapter.rename(run_dir.adapter)
    write_json(run_dir.stage_file("fetch"), {"model_dir": str(base)})
    write_json(run_dir.stage_file("train"), {})
    config = cast(Config, SimpleNamespace(method=SimpleNamespace(name="lora"), merge=MergeConfig(logits=False)))
    stage.run(config, run_dir)
    assert "base not checked: the adapter has no base.json" in capsys.readouterr().out

    def killed(directory: Path) -> None:
        (directory / "merge.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.run(config, run_dir)
    assert not run_dir.merged.exists()
    stage.run(config, run_dir)
    assert (run_dir.merged / "merge.json").is_file()
    assert not list(run_dir.path.glob(".*discarded"))


def test_an_output_that_overlaps_an_input(base: Path, adapter: Path, tmp_path: Path) -> None:
    named = base.rename(tmp_path / "mine.tmp")
    before = sorted(path for path in tmp_path.rglob("*"))
    for out in (named, named / "out", adapter / "out", tmp_path, tmp_path / "mine", tmp_path / "x" / ".." / "mine"):
        with pytest.raises(UsageError, match=r"overlaps the input .*: give an output directory apart from it"):
            merge(named, adapter, out, QUICK)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_the_order_in_which_names_were_saved_is_no_other_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    """peft's target_modules are a set: saved twice they may come in another order."""
    configure(adapter, target_modules=["q_proj", "v_proj"])
    merge(base, adapter, tmp_path / "out", QUICK)
    configure(adapter, target_modules=["v_proj", "q_proj"])
    assert merge(base, adapter, tmp_path / "out", QUICK)["reused"]
    configure(adapter, lora_alpha=99)
    with pytest.raises(UsageError, match="other inputs or options"):
        merge(base, adapter, tmp_path / "out", QUICK)


def test_too_little_room(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(base)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(base, adapter, r"needs 0.00 GB, but only 0.00 GB are free|needs .* GB, but only")


def test_a_result_that_exists(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    merge(base, adapter, out, QUICK)  # an empty directory is as good as none
    with pytest.raises(UsageError, match="other inputs or options"):
        merge(base, adapter, out, MergeOptions(logits=False, dtype="bfloat16"))
    (out / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="files were changed since"):
        merge(base, adapter, out, QUICK)
    (out / "merge.json").unlink()
    with pytest.raises(UsageError, match="not a finished merge"):
        merge(base, adapter, out, QUICK)


def test_a_directory_that_another_process_writes(base: Path, adapter: Path, tmp_path: Path) -> None:
    with staged(tmp_path / "out"):
        with pytest.raises(TrntuneError, match="being written by another process"):
            merge(base, adapter, tmp_path / "out", QUICK)


def test_the_marker_of_unfinished_work_is_removed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it cleans up after an error, it must leave what the next one knows as its own."""
    work = tmp_path / "out.tmp"
    left: list[str] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: left.extend(file.name for file in path.iterdir()))

    def interrupted() -> None:
        with staged(tmp_path / "out"):
            (work / "model.safetensors").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert left == [MARKER]


def test_a_killed_merge_leaves_no_result_and_is_done_again(base: Path, adapter: Path, tmp_path: Path) -> None:
    out, leftover = tmp_path / "out", tmp_path / "out.tmp"
    command = [sys.executable, "-c", _SLOW_MERGE, str(base), str(adapter), str(out)]
    process = subprocess.Popen(command)
    # The eighth tensor is about to be written.
    until(lambda: process.poll() is not None or (leftover / "half").exists())
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert (leftover / "model.safetensors").exists()
    assert main([str(base), str(adapter), str(out)]) == 0
    assert not leftover.exists()
    assert not (out / "half").exists()
    expected = peft_merge(base, adapter)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stored(out).items())


# The real command, stopped for good before its eighth tensor.
_SLOW_MERGE = """
import sys, time
from pathlib import Path
from postprocess.safetensors import writer as stream
take, count = stream.ShardedWriter._take, []
def slow(self, name):
    count.append(name)
    if len(count) == 8:
        (self.directory / "half").touch()
        time.sleep(600)  # it is killed meanwhile
    return take(self, name)
stream.ShardedWriter._take = slow
from postprocess.merge.__main__ import main
main(sys.argv[1:])
"""
