"""The cache: an entry is built once, and is whole or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.errors import TrntuneError
from launcher.paths import ROOT
from tests.limits import PATIENCE
from trainer.fetch import cache


def test_an_entry_is_built_once_and_reused(empty_cache):
    calls = []

    def build(directory: Path) -> None:
        calls.append(directory)
        (directory / "file").write_text("whole")

    assert cache.entry("thing", build) == cache.entry("thing", build) == empty_cache / "thing"
    assert len(calls) == 1
    assert (empty_cache / "thing" / "file").read_text() == "whole"


def test_a_failed_build_leaves_nothing(empty_cache):
    def build(directory: Path) -> None:
        (directory / "half").write_text("")
        raise TrntuneError("no")

    with pytest.raises(TrntuneError, match="no"):
        cache.entry("thing", build)
    assert [path.name for path in empty_cache.iterdir() if "lock" not in path.name] == []


def test_an_entry_is_on_the_disk_before_it_has_its_name(empty_cache, monkeypatch):
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def synced(handle: int) -> None:
        done.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        sync(handle)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"-> {target.name}")
        return rename(path, target)

    def build(directory: Path) -> None:
        (directory / "inner").mkdir()
        (directory / "inner" / "weights").write_text("whole")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    cache.entry("thing", build)
    named = done.index("-> thing")
    assert {"inner", "weights"} <= set(done[:named])
    assert done[named - 1].startswith(".thing.building-")
    assert done[named + 1 :] == [empty_cache.name]


BUILDER = """
import sys, time
from pathlib import Path
from trainer.fetch import cache

def build(directory):
    (directory / "half").write_text("")
    print("building", flush=True)
    time.sleep(float(sys.argv[1]))
    (directory / "whole").write_text("")

print(cache.entry("thing", build), flush=True)
"""


def builder(seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(seconds)],
        cwd=ROOT,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_build_once(empty_cache):
    # The second that building takes is for the other one to come upon it; if it comes later it finds the entry.
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in [builder(1), builder(1)]]
    assert sorted(output.count("building") for output in outputs) == [0, 1]
    assert (empty_cache / "thing" / "whole").exists()


def test_a_builder_that_was_killed_leaves_no_entry_and_the_next_one_succeeds(empty_cache):
    process = builder(PATIENCE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "building"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=PATIENCE)
    assert not (empty_cache / "thing").exists()
    assert "building" in builder(0).communicate(timeout=PATIENCE)[0]
    assert (empty_cache / "thing" / "whole").exists()
    assert list(empty_cache.glob(".thing.building-*")) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRNTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(TrntuneError, match="TRNTUNE_CACHE"):
        cache.entry("thing", lambda directory: None)
