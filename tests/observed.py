"""What a test has started, for whoever reads that it failed: commands, their output, and the end of run directories."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

OUTPUT, LINES, DIRECTORIES = 4000, 8, 4
"""characters of each output; lines of each file; run directories"""

_started: list[subprocess.Popen[Any]] = []


def install() -> None:
    """From now on this process's Popen keeps what its processes have printed."""
    communicate = subprocess.Popen.communicate

    def kept(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.outputs = communicate(self, *args, **kwargs)
        return self.outputs

    subprocess.Popen.communicate = kept  # type: ignore[method-assign]


def started(process: subprocess.Popen[Any]) -> None:
    """Remember it (tests.warm.popen.install)."""
    _started.append(process)


def forget() -> None:
    """Another test begins."""
    _started.clear()


def processes() -> str:
    """Each command with its exit code and the end of its output."""
    return "\n".join(line for process in _started for line in _told(process))


def _told(process: subprocess.Popen[Any]) -> Iterator[str]:
    args = process.args if isinstance(process.args, str) else " ".join(os.fsdecode(each) for each in process.args)
    yield f"$ {args}\n  exit code {process.returncode}"
    for output in getattr(process, "outputs", ()):
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        if text:
            yield text[-OUTPUT:].rstrip()


def run_directories(*below: Path) -> str:
    """The end of what the newest runs below these directories have written."""
    marks = [mark for place in below for mark in place.rglob("plan.json")]
    newest = sorted({mark.parent for mark in marks}, key=lambda path: path.stat().st_mtime)[-DIRECTORIES:]
    return "\n".join(line for directory in newest for line in _end_of(directory))


def _end_of(directory: Path) -> Iterator[str]:
    yield f"{directory}: {', '.join(sorted(path.name for path in directory.iterdir()))}"
    for file in [*directory.glob("*.jsonl"), *directory.glob("stages/*.json"), *directory.glob("logs/*.out")]:
        yield f"{file.relative_to(directory)}:"
        yield from (f"  {line[:400]}" for line in file.read_text(errors="replace").splitlines()[-LINES:])


def left(name: str, value: str) -> list[str]:
    """Processes whose environment has this variable with this value: what was started by a run of the tests."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.Error:  # ended, or another user's
            continue
    return found
