"""Fixtures of the launcher's tests: the command as a real process, and configurations without one."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.app import main
from launcher.cli import parse
from launcher.config.compose import Composed, Composer, Composition
from launcher.paths import ROOT
from launcher.plan import schedule
from tests.limits import PATIENCE

Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    path = tmp_path / "cwd"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def launch(cwd: Path) -> Launch:
    """Runs `python /path/launch.py ...` from an empty directory, as a user would."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, str(ROOT / "launch.py"), *arguments]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE)

    return run


@pytest.fixture
def answer(cwd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Launch:
    """What `launch` gives, without a process of its own: where nothing is started."""
    monkeypatch.setattr(schedule, "_measured", {})  # a new process remembers nothing

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = main(list(arguments))
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, shown.out, shown.err)

    return run


@pytest.fixture
def plan(answer: Launch) -> Callable[..., Any]:
    """The plan of a command line as JSON."""

    def run(*arguments: str) -> Any:
        done = answer(*arguments, "plan=true", "plan.format=json")
        assert done.stderr == ""
        return json.loads(done.stdout)

    return run


def composition(*arguments: str) -> Composition:
    """What a command line composes to."""
    given = parse(list(arguments))
    return _composer(given.config_name, given.config_dir).compose(given.overrides, given.multirun)


# It has read each file once.
_composer = functools.cache(Composer)


def single(*arguments: str) -> Composed:
    """The one run of a command line, a copy for the caller; but for its directory, which nobody asks for, it says
    nothing of when and where it was composed: once for the same environment."""
    changing = ("PYTEST_CURRENT_TEST", "PWD", "OLDPWD")
    return copy.deepcopy(_single(arguments, frozenset(item for item in os.environ.items() if item[0] not in changing)))


@functools.cache
def _single(arguments: tuple[str, ...], environment: frozenset[tuple[str, str]]) -> Composed:
    return composition(*arguments).runs[0]


def slurm_commands(tmp_path, monkeypatch, **scripts: str) -> None:
    """Commands of these names that say what they are told to: versions and accidents that the real one here has not."""
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
