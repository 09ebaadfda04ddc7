"""A model directory of the user's."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import TrntuneError
from launcher.model_dir.weights import absent, unreadable


def check_directory(path: str) -> Path:
    """The directory, absolute. Raises TrntuneError that names what a model directory needs and this one lacks, or has
    in a form that isn't read."""
    directory = Path(path).expanduser().absolute()
    if not directory.is_dir():
        raise TrntuneError(f"model.path={path}: there is no such directory")
    fault = unreadable(directory) or absent(directory)
    if fault is not None:
        raise TrntuneError(f"model.path={path}: {fault}")
    return directory
