"""Questions that need heavy packages are asked of a process of its own: the launcher itself stays free of them."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

from launcher.paths import ROOT

SECONDS = 120

# As `python -m`, but from this copy of the project: -m would look in the working directory first (before Python 3.11
# always), where another copy may lie, or a folder of the same name.
_START = (
    f"import runpy, sys; sys.path[0] = {str(ROOT)!r}; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules, with this interpreter and from this copy of the project."""
    return [sys.executable, "-c", _START, module, *arguments]


def run_module(module: str, request: str, stderr: int | None = subprocess.DEVNULL) -> dict[str, Any] | None:
    """What `python -m module request` prints as JSON in its last line, or None where it fails.

    ``stderr`` None is the launcher's own.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = python_module(module, request)
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=SECONDS,
            check=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is the launcher's: it ends this process itself, without a traceback
        )
    except subprocess.SubprocessError:
        return None
    # Libraries print, too: the answer is the last line.
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@functools.cache
def ask(module: str, request: str) -> dict[str, Any] | None:
    """run_module, once for all runs of a sweep that ask the same."""
    return run_module(module, request)
