"""Questions that need torch are asked of a process of its own: the launcher itself stays free of it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

from launcher.paths import ROOT

SECONDS = 120


@functools.cache
def ask(module: str, request: str) -> dict[str, Any] | None:
    """What `python -m module request` prints as JSON, or None where it fails; once for all runs of a sweep."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, request]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True, env=environment)
    except subprocess.SubprocessError:
        return None
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
