"""The two ways in which trntune refuses: one clear line each, never a traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence

# What commands and stages exit with; 2 for a refusal, as argparse does.
FAILED = 1
SUSPENDED = 75  # EX_TEMPFAIL of sysexits.h: it was told to leave, left a checkpoint, and can be started again
INTERRUPTED = 130  # 128 + SIGINT, as shells report Ctrl-C


class TrntuneError(Exception):
    """A failure that the user can act on. The message is one line: what, where, what to do. Exit code 1."""

    exit_code = 1


class UsageError(TrntuneError):
    """A configuration or command line that cannot be run. Nothing has been created. Exit code 2."""

    exit_code = 2


class SuspendedError(Exception):
    """The stage was told to leave (SIGTERM, SIGUSR2), and has. The message says where it can go on. Exit code 75."""


def disk_fault(error: OSError) -> str | None:
    """What to tell of a disk that takes no more, in one line; None for any other fault."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; free room there, or look at the file system, and start it again"


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like ``name``, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None


def first(names: Sequence[str], count: int = 3) -> str:
    """The first names, and how many more there are: a line that stays a line."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more:,} more" if more > 0 else "")


def in_one_line(error: BaseException, most: int | None = None) -> str:
    """What a library says, its lines joined, at most so many characters; what kind of error it is where it says
    nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def in_first_line(error: BaseException) -> str:
    """The first line of what a library says; what kind of error it is where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
