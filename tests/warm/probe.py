"""A program that tells what a process finds at its start: `python -m tests.warm.probe [WORK]`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from launcher.paths import ROOT
from tests.limits import PATIENCE

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def found() -> dict[str, object]:
    """Everything but the process id and what was imported of others."""
    files = (getattr(module, "__file__", None) for module in sys.modules.values())
    return {
        "parent": os.getppid(),
        "leads_session": os.getsid(0) == os.getpid(),
        "group_of_parent": os.getpgrp() == os.getpgid(os.getppid()),
        "directory": str(Path.cwd()),
        "environment": dict(os.environ),
        "arguments": sys.argv,
        "path": sys.path,
        "name": __name__,
        "command_line": [word for word in psutil.Process().cmdline() if word],
        "signals": {each.name: str(signal.getsignal(each)) for each in SIGNALS},
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "open": sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.exists()),
        "project": sorted(file for file in files if file and Path(file).is_relative_to(ROOT) and "/tests/" not in file),
        "input": sys.stdin.read(),
        "threads": psutil.Process().num_threads(),
        "umask": os.umask(0o022),
    }


def main(work: str) -> None:
    """``work``: report, wait, raise, code, text."""
    match work:
        case "report":
            print(json.dumps(found()))
        case "wait":
            print("waiting", flush=True)
            time.sleep(PATIENCE)  # a signal ends it
        case "raise":
            raise RuntimeError("this is what happened")
        case "code":
            sys.exit(75)
        case _:
            sys.exit("a text")


if __name__ == "__main__":
    main(sys.argv[1])
