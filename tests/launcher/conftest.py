"""Fixtures of the launcher's tests: the command as a real process, and configurations without one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.cli import parse
from launcher.compose import Composed, Composition, compose
from launcher.paths import ROOT
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


def composition(*arguments: str) -> Composition:
    """What a command line composes to."""
    return compose(parse(list(arguments)))


def single(*arguments: str) -> Composed:
    """The one run of a command line."""
    return composition(*arguments).runs[0]


def slurm_commands(tmp_path, monkeypatch, **scripts: str) -> None:
    """Commands of these names that say what they are told to: versions and accidents that the real one here has not."""
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
