"""Imported by every Python process that has this folder on its PYTHONPATH: ends or hinders it at a file operation.

TRNTUNE_FAULT is JSON: {"op": "open", "path": regular expression, "count": 3, "signal": 9} sends the process signal 9 at
its third opening of a matching file; "errno" instead of "signal" lets the operation fail, "sleep" has it wait so many
seconds, "log" has the path added to that file; "from" instead of "count" does it every time from then on. Operations:
open (its path is "PATH:MODE"), fsync, rename, mkdir, remove.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

_fault = json.loads(os.environ.get("TRNTUNE_FAULT", "null"))
_seen = 0


def _at(op: str, path: object) -> None:
    global _seen
    if op != _fault["op"] or not re.search(_fault["path"], os.fsdecode(path) if path is not None else ""):
        return
    _seen += 1
    if _seen != _fault.get("count") and _seen < _fault.get("from", 10**9):
        return
    if "errno" in _fault:
        raise OSError(_fault["errno"], os.strerror(_fault["errno"]), os.fsdecode(path))
    if "log" in _fault:
        handle = os.open(_fault["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, os.fsencode(path) + b"\n")
        os.close(handle)
    elif "sleep" in _fault:
        time.sleep(_fault["sleep"])
    else:
        os.kill(os.getpid(), _fault["signal"])


def _hook(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _at("open", f"{os.fsdecode(arguments[0])}:{arguments[1]}")
    elif event in ("os.rename", "os.mkdir", "os.remove"):
        _at(event.removeprefix("os."), arguments[0])


def _fsync(handle: int) -> None:
    _at("fsync", Path(f"/proc/self/fd/{handle}").readlink())
    _real_fsync(handle)


if _fault is not None:
    _real_fsync, os.fsync = os.fsync, _fsync
    sys.addaudithook(_hook)
