"""A fork is what exec would have made of the same arguments: each case is run both ways."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from launcher.jobs.helper_process import python_module
from launcher.jobs.supervisor import prepare_child
from launcher.paths import ROOT
from tests.conftest import FORKS
from tests.limits import PATIENCE
from tests.warm.popen import is_known

PROBE = python_module("tests.warm.probe")


@pytest.fixture(params=["fork", "exec"])
def way(request, monkeypatch):
    monkeypatch.setattr(FORKS, "enabled", request.param == "fork")
    return request.param


def report(monkeypatch, way: str, **options) -> dict:
    monkeypatch.setattr(FORKS, "enabled", way == "fork")
    done = subprocess.run([*PROBE, "report"], capture_output=True, text=True, check=True, input="given", **options)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "options",
    [{}, {"start_new_session": True, "preexec_fn": prepare_child}, {"env": {**os.environ, "PYTHONSAFEPATH": "1"}}],
    ids=["plain", "session", "environment"],
)
def test_a_process_finds_the_same(options, tmp_path, monkeypatch):
    forked, executed = (report(monkeypatch, way, cwd=tmp_path, **options) for way in ("fork", "exec"))
    assert forked == executed
    assert forked["parent"] == os.getpid()
    assert forked["directory"] == str(tmp_path)
    assert forked["input"] == "given"


@pytest.mark.parametrize(
    ("work", "code", "text"), [("raise", 1, "this is what happened"), ("code", 75, ""), ("text", 1, "a text")]
)
def test_it_ends_the_same(work, code, text, way):
    done = subprocess.run([*PROBE, work], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_ends_it(number, way):
    process = subprocess.Popen([*PROBE, "wait"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "waiting\n"
    assert psutil.Process(process.pid).ppid() == os.getpid()
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -number


def test_a_program_that_is_a_file_and_one_that_is_a_module(way, tmp_path):
    for command in ([str(ROOT / "launch.py"), "method=lara"], ["-m", "postprocess.merge"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(("error:", "usage:"))
        assert "Traceback" not in done.stderr


def test_only_the_projects_own_commands_are_forks():
    assert is_known(PROBE)
    assert is_known([sys.executable, str(ROOT / "launch.py"), "--help"])
    assert not is_known(["/usr/bin/python3", str(ROOT / "launch.py")])
    assert not is_known([sys.executable, "-c", "print()"])
    assert not is_known([sys.executable, "-m", "mlflow", "ui"])


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "OMP_NUM_THREADS", "PYTHONHASHSEED", "XDG_CACHE_DIR"])
def test_settings_that_are_read_at_import_are_not_left_to_a_fork(name):
    usual = {"args": PROBE, "preexec_fn": None, "shell": False, "pass_fds": (), "executable": None}
    assert FORKS.takes({**usual, "env": dict(os.environ)})
    assert not FORKS.takes({**usual, "env": {**os.environ, name: "another"}})
