"""The two ways in which trntune refuses: one clear line each, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrntuneError(Exception):
    """A failure that the user can act on. The message is one line: what, where, what to do. Exit code 1."""

    exit_code = 1


class UsageError(TrntuneError):
    """A configuration or command line that cannot be run. Nothing has been created. Exit code 2."""

    exit_code = 2


class Suspended(Exception):
    """The stage was told to leave (SIGTERM, SIGUSR2), and has. The message says where it can go on. Exit code 75."""


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like ``name``, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None
