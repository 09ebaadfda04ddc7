"""Slurm's commands, called so that none of them hangs for ever and each failure is one line."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from launcher.errors import TrntuneError

SUBMISSION_SECONDS = 120.0
"""for sbatch: a busy controller takes its time"""


class NoAnswer(TrntuneError):
    """Slurm doesn't answer."""


def ask(
    command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None, advice: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands and return how it ended, whatever its exit code.

    Raises NoAnswer when it can't be started or hasn't ended after ``seconds``; ``advice`` is the end of that line.
    """
    more = f"; {advice}" if advice else ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=env)
    except subprocess.TimeoutExpired:
        raise NoAnswer(
            f"{command[0]} failed: no answer within {seconds:g} s: is Slurm's controller up (scontrol ping)?{more}"
        ) from None
    except OSError as error:
        raise NoAnswer(f"{command[0]} failed: {error.strerror}; this must be a node of the cluster") from None


def words(text: str) -> str:
    """What a command of Slurm has printed as an error, in one line."""
    return " ".join(text.replace("sbatch: error:", "").split())
