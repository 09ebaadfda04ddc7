"""A real Slurm for the tests of this folder; where it isn't installed they say so, in CI they fail."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.executors.slurm.ledger import Ledger, read
from launcher.paths import ROOT
from tests.slurm.cluster import PATIENCE, Slurm
from tests.slurm.programs import missing

# Two random layers: what Slurm does with a run is the same as for a real model, in seconds.
QUICK = ("experiment=tiny", "tracking=none", "tracking.samples=1", "tracking.sample_tokens=4", "cluster=slurm")


def require(accounting: bool = False) -> None:
    """Skip without Slurm; fail in CI, which installs it."""
    if names := missing(accounting):
        reason = (
            f"no {', '.join(names)}: apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@dataclass(frozen=True)
class User:
    """Somebody at a login node: commands in a directory, with a cluster."""

    slurm: Slurm
    directory: Path

    def launch(self, *arguments: str, root: Path = ROOT, env: dict[str, str] | None = None) -> Any:
        """launch.py with these arguments; it must succeed."""
        done = self.try_launch(*arguments, root=root, env=env)
        assert done.returncode == 0, done.stderr + done.stdout
        return done

    def try_launch(self, *arguments: str, root: Path = ROOT, env: dict[str, str] | None = None) -> Any:
        command = [sys.executable, str(root / "launch.py"), *arguments]
        return self._run(command, {"PYTHONPATH": "", **(env or {})})

    def launcher(self, *arguments: str, timeout: float = PATIENCE) -> Any:
        """python -m launcher with these arguments."""
        return self._run([sys.executable, "-m", "launcher", *arguments], {"PYTHONPATH": str(ROOT)}, timeout)

    def submit(self, name: str, *arguments: str, env: dict[str, str] | None = None) -> Ledger:
        """Submit a single run into a directory of this name."""
        self.launch(*QUICK, f"hydra.run.dir='{self.directory / name}'", *arguments, env=env)
        return read(self.directory / name)

    def wait(self, name: str) -> int:
        return int(self.launcher("wait", str(self.directory / name), "--every", "1").returncode)

    def _run(self, command: list[str], env: dict[str, str], timeout: float = PATIENCE) -> Any:
        environment = {**self.slurm.environment, **env}
        return subprocess.run(
            command, cwd=self.directory, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Four nodes without accounting, for all tests of a worker of pytest-xdist."""
    require()
    # Sockets have paths of at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        with Slurm(Path(directory) / "c") as cluster:
            yield cluster


@pytest.fixture
def user(slurm: Slurm, tmp_path: Path) -> Iterator[User]:
    """In an empty directory with a space in its name; what is left in the queue is cancelled."""
    directory = tmp_path / "my runs"
    directory.mkdir()
    yield User(slurm, directory)
    slurm.run("scancel", "--user", str(os.getuid()), check=False)
