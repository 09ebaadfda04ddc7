"""How long a test waits for what must come. Nothing is concluded from it: machines are shared, and some are slow."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 900.0
"""seconds"""


def until(condition: Callable[[], object], seconds: float = PATIENCE, every: float = 0.05) -> None:
    """Wait until ``condition`` holds; an AssertionError after ``seconds``, or whatever ``condition`` raises."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(every)
