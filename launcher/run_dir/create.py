"""Names of run directories, and how they are made so that two runs never share one."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from launcher.errors import TrntuneError

LONGEST_NAME = 100


def subdirectory_name(text: str) -> str:
    """A safe name of at most 100 characters for a sweep's run: no separators, no spaces, no leading dot."""
    safe = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", re.sub(r"['\"]", "", text))
    return safe[:LONGEST_NAME].strip("._-,") or "run"


def occupied(directory: Path) -> str | None:
    """Why ``directory`` cannot take a new run, or None."""
    if directory.is_file():
        return "is a file"
    # Hidden files are those of a launcher that was killed before it had written down what it was to run.
    if any((directory / ".hydra").glob("[!.]*")):
        return "holds a run already"
    return None


def blocked(directory: Path) -> str | None:
    """Why a directory cannot be made at this path, or None; looks at the nearest ancestor that exists."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is a file"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} is not writable"
    return None


def make_private(directory: Path) -> None:
    """Make a directory and what is missing above it, for their owner only."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def create(directory: Path, fixed_name: bool) -> Path:
    """Make ``directory``, for its owner only. A name that a time was put into gets _2, _3, ... when it is taken."""
    try:
        make_private(directory.parent)
        if fixed_name:
            directory.mkdir(mode=0o700, exist_ok=True)
            directory.chmod(0o700)
            return directory
        for number in itertools.count(1):
            candidate = directory if number == 1 else directory.with_name(f"{directory.name}_{number}")
            try:
                candidate.mkdir(mode=0o700)  # fails when another launcher was faster: the name is then taken
            except FileExistsError:
                continue
            return candidate
    except OSError as error:
        raise TrntuneError(f"cannot make {directory}: {error.strerror or error}") from error
    raise AssertionError("itertools.count does not end")
