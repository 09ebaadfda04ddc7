"""Who holds a run directory."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from launcher.jobs import run_stage
from launcher.run_dir import lock
from launcher.run_dir.lock import LockHeldError, RunLock, current_process
from tests.limits import PATIENCE, until


def hold(directory: Path, **changes) -> None:
    """A lock file as another process leaves it."""
    (directory / "run.lock").write_text(json.dumps([asdict(replace(current_process("launch.py"), **changes))]))


def test_a_free_directory_is_taken_and_given_back(tmp_path):
    with RunLock(tmp_path, "launch.py"):
        [holder] = json.loads((tmp_path / "run.lock").read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
        with pytest.raises(LockHeldError, match=f"process {os.getpid()} on .* works in this directory"):
            RunLock(tmp_path, "launch.py").acquire()
    assert (tmp_path / "run.lock").read_text() == "[]"
    with RunLock(tmp_path, "launch.py"):
        pass


def test_with_patience_it_waits_for_the_end_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.01)
    first = RunLock(tmp_path, "launch.py")
    first.acquire()
    with pytest.raises(LockHeldError):
        RunLock(tmp_path, "stage fetch", patience=0.1).acquire()
    look = RunLock._take

    def look_then_end_the_first(self: RunLock) -> None:
        try:
            look(self)
        except LockHeldError:
            first.release()
            raise

    monkeypatch.setattr(RunLock, "_take", look_then_end_the_first)
    with RunLock(tmp_path, "stage fetch", patience=PATIENCE):
        [holder] = json.loads((tmp_path / "run.lock").read_text())
        assert holder["role"] == "stage fetch"


def test_patience_ends_where_it_is_told_to_leave(tmp_path):
    hold(tmp_path, host="trn7")
    looks = iter([False, True])
    with pytest.raises(LockHeldError):
        RunLock(tmp_path, "job of stage train", patience=PATIENCE, give_up=lambda: next(looks)).acquire()
    assert list(looks) == []


def test_only_a_job_of_slurm_waits_for_its_directory(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert run_stage.patience() == 0
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert run_stage.patience() > lock.STALE_SECONDS


def test_a_stage_may_join_its_launcher_and_nobody_else(tmp_path):
    hold(tmp_path)
    with pytest.raises(LockHeldError):
        RunLock(tmp_path, "stage train", frozenset({1})).acquire()
    with RunLock(tmp_path, "stage train", frozenset({os.getpid()})):
        assert len(json.loads((tmp_path / "run.lock").read_text())) == 2


def test_a_refusal_says_how_long_a_killed_holder_on_another_host_counts_as_alive(tmp_path):
    hold(tmp_path, host="trn7")
    before = (tmp_path / "run.lock").stat().st_mtime - 30
    os.utime(tmp_path / "run.lock", (before, before))
    with pytest.raises(LockHeldError) as raised:
        RunLock(tmp_path, "launch.py").acquire()
    found = re.search(r"or end it; if it was killed, or its machine is gone, try again in (\d+) s", str(raised.value))
    assert found is not None
    assert 0 < int(found[1]) <= 60


def ended_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": "ended"},
        {"started": 1.0},  # the pid is another process's by now
        {"boot": "another start of this machine"},
    ],
    ids=["ended", "pid used again", "restarted"],
)
def test_a_dead_holder_on_this_host_is_not_in_the_way(tmp_path, changes):
    hold(tmp_path, **{key: ended_process() if value == "ended" else value for key, value in changes.items()})
    with RunLock(tmp_path, "launch.py"):
        pass


def test_a_holder_on_another_host_is_alive_while_it_touches_the_file(tmp_path):
    hold(tmp_path, host="trn-7", pid=123456)
    with pytest.raises(LockHeldError, match="process 123456 on trn-7"):
        RunLock(tmp_path, "launch.py").acquire()
    long_ago = time.time() - lock.STALE_SECONDS - 5
    os.utime(tmp_path / "run.lock", (long_ago, long_ago))
    with RunLock(tmp_path, "launch.py"):
        pass


def test_a_job_that_slurm_starts_anew_takes_over_from_its_lost_node(tmp_path, monkeypatch):
    hold(tmp_path, host="trn-7", slurm_job_id="42")
    monkeypatch.setenv("SLURM_JOB_ID", "43")
    with pytest.raises(LockHeldError):
        RunLock(tmp_path, "launch.py").acquire()
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    with RunLock(tmp_path, "launch.py"):
        pass


def test_the_holder_touches_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    with RunLock(tmp_path, "launch.py") as held:
        os.utime(held.file, (1, 1))
        until(lambda: held.file.stat().st_mtime >= 2)


@pytest.mark.parametrize("text", ["", "[", '[{"pid": 1}]', "{}"])
def test_a_file_that_a_crash_cut_off_holds_nobody(tmp_path, text):
    (tmp_path / "run.lock").write_text(text)
    with RunLock(tmp_path, "launch.py"):
        pass


def test_a_kill_while_the_file_is_written_leaves_its_holders(tmp_path, monkeypatch):
    hold(tmp_path, role="a launcher with a long name " * 9)
    holder = current_process("launcher")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "ftruncate", killed)
    with (tmp_path / lock.LOCK).open("r+", encoding="utf-8") as stream, pytest.raises(KeyboardInterrupt):
        lock._write(stream, [holder])
    assert json.loads((tmp_path / lock.LOCK).read_text()) == [asdict(holder)]
