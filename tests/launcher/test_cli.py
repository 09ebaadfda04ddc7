"""How a command ends: its exit code, and one line that says why."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from launcher.cli import process_entry
from launcher.errors import TrntuneError, UsageError
from launcher.paths import ROOT

TOKEN = "hf_abcdefghijklmnopqrstuv"


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (UsageError(f"x={TOKEN}:\nno such key"), 2, "error: x=***: no such key\n"),
        (TrntuneError("it failed"), 1, "error: it failed\n"),
        (KeyboardInterrupt(), 130, "the jobs go on\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out.json"), 1, "error: "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_ends_a_command_is_told_in_one_line(end, code, told, capsys):
    def work(_: list[str]) -> int:
        raise end

    assert process_entry(work, [], "the jobs go on") == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(told)
    assert shown.err.count("\n") == 1


def test_a_command_gets_its_arguments_and_gives_its_exit_code():
    assert process_entry(len, ["a", "b", "c"]) == 3


def test_a_fault_that_is_nobodys_is_not_hidden():
    def work(_: list[str]) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")

    with pytest.raises(OSError, match="Bad file"):
        process_entry(work, [])


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_a_reader_that_has_enough_is_no_failure(argument, cwd):
    """The help fills the pipe's buffer, the version is written at the end."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(ROOT / "launch.py"), argument]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
