"""A child process that does not outlive its launcher: no stage may go on training unseen."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
LAUNCHER_PID = "TRNTUNE_LAUNCHER_PID"


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent dies; nothing elsewhere. Kept over exec, not over fork."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def launcher_pids() -> frozenset[int]:
    """The launcher that started this process, if one did."""
    pid = os.environ.get(LAUNCHER_PID)
    return frozenset() if pid is None else frozenset({int(pid)})


def parent_is_gone() -> bool:
    """True when the launcher died before die_with_parent was called. Under torchrun the parent is torchrun."""
    expected = os.environ.get(LAUNCHER_PID)
    return expected is not None and "TORCHELASTIC_RUN_ID" not in os.environ and os.getppid() != int(expected)
