"""Questions that need heavy packages are asked of a process of its own: the launcher itself stays free of them."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from launcher.config.secrets import redact
from launcher.errors import TrntuneError, UsageError
from launcher.paths import ROOT

SECONDS = 120.0

# As `python -m`, but from this copy of the project: -m would look in the working directory first (before Python 3.11
# always), where another copy may lie, or a folder of the same name.
_START = (
    f"import runpy, sys; sys.path[0] = {str(ROOT)!r}; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


# How torchrun and MPI number their processes, and how torchrun takes its options from the environment. What another
# tool has left would make a single process one of several: accelerate reads all of these
# (accelerate/utils/environment.py).
OF_A_PROCESS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE"),
    *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_OF_LAUNCHERS = ("TORCHELASTIC_", "PET_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_")


def outside_of_torchrun() -> dict[str, str]:
    """This process's environment without the number of any process."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in OF_A_PROCESS and not name.startswith(_OF_LAUNCHERS)
    }


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules, with this interpreter and from this copy of the project."""
    return [sys.executable, "-c", _START, module, *arguments]


_TOLD = (TrntuneError.exit_code, UsageError.exit_code)
"""What a process ends with that has said itself why, be it by a traceback, or whose reader has gone."""


class NoAnswer(TrntuneError):
    """A process that was asked has not answered. The message says which, how it ended, and its last words."""

    ended_with: int | None = None
    """its exit code; None of a process that gave another answer than asked for, or none in time, or didn't start"""


def answer(module: str, request: str, stderr: int | None = subprocess.PIPE, patient: bool = False) -> dict[str, Any]:
    """What `python -m module request` prints as JSON in its last line. Raises NoAnswer where it fails.

    ``stderr`` None is the launcher's own: it is then shown as it comes, and not repeated in the error. ``patient``: it
    may take as long as it takes.
    """
    done = _run(module, request, subprocess.PIPE, stderr, None if patient else SECONDS)
    # Libraries print, too: the answer is the last line.
    found = _json_object(_last_line(done.stdout))
    if found is None:
        raise NoAnswer(_failure(module, "no answer in its output", done.stderr))
    return found


def show(module: str, directory: Path, missing: str) -> int:
    """Have `python -m module directory` print what it has to say. Returns the exit code of one that has told itself why
    it failed, such as a full disk, else 0; a line on stderr then says what is ``missing``: "no summary"."""
    sys.stdout.flush()  # what was printed before stands before it
    try:
        _run(module, str(directory), None, None, None)
    except NoAnswer as error:
        if error.ended_with in _TOLD:
            return error.ended_with
        print(f"warning: {missing}: {error}", file=sys.stderr)
    return 0


def _run(
    module: str, argument: str, stdout: int | None, stderr: int | None, seconds: float | None
) -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(
            python_module(module, argument),
            stdout=stdout,
            stderr=stderr,
            timeout=seconds,
            env={**outside_of_torchrun(), "PYTHONPATH": str(ROOT)},
            start_new_session=True,  # Ctrl-C is the launcher's: it ends this process itself, without a traceback
        )
    except subprocess.TimeoutExpired as late:
        raise NoAnswer(_failure(module, f"no answer within {seconds:g} s", late.stderr)) from None
    except OSError as error:  # no process left to start, or no memory for it
        raise NoAnswer(_failure(module, f"not started: {error.strerror}", None)) from None
    if done.returncode:
        failed = NoAnswer(_failure(module, _ending(done.returncode), done.stderr))
        failed.ended_with = done.returncode
        raise failed
    return done


def run_module(
    module: str, request: str, missing: str, stderr: int | None = subprocess.PIPE, patient: bool = False
) -> dict[str, Any] | None:
    """``answer``, or None and a line on stderr that says what is ``missing`` for it: "the plan has no time"."""
    try:
        return answer(module, request, stderr, patient)
    except NoAnswer as error:
        print(f"warning: {missing}: {error}", file=sys.stderr)
        return None


@functools.cache
def ask(module: str, request: str, missing: str) -> dict[str, Any] | None:
    """run_module, once for all runs of a sweep that ask the same: a failure, too, is told once."""
    return run_module(module, request, missing)


def _failure(module: str, ending: str, stderr: bytes | None) -> str:
    words = redact(_last_line(stderr))
    return f"{module} failed ({ending})" + (f": {words}" if words else "")


def _ending(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-code}"


def _last_line(output: bytes | None) -> str:
    """The last line that says anything, its spaces collapsed."""
    lines = (output or b"").decode(errors="replace").splitlines()
    return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
