"""Waiting for AWS, with a line for every change that a person would like to see."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cluster.schema import SetupConfig
from launcher.errors import TrntuneError
from launcher.units import seconds

T = TypeVar("T")


def say(line: str) -> None:
    """A line of progress: to stderr, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Patience:
    """How often AWS is asked, and for how long."""

    poll_seconds: float
    timeout_seconds: float

    @staticmethod
    def of(config: SetupConfig) -> Patience:
        return Patience(config.poll_seconds, config.timeout_min * 60)


def wait(what: str, ask: Callable[[], tuple[T, str, bool]], patience: Patience) -> T:
    """Ask until done. ``ask`` returns a value, the state in words, and whether that is the end.

    Raises TrntuneError when it takes longer than the patience lasts; AWS goes on, and so can the command.
    """
    start, last = time.monotonic(), None
    while True:
        value, state, done = ask()
        elapsed = time.monotonic() - start
        if state != last:
            say(f"{what}: {state}" + (f" after {seconds(elapsed)}" if last else ""))
            last = state
        if done:
            return value
        if elapsed > patience.timeout_seconds:
            raise TrntuneError(
                f"{what} is still {state} after {seconds(elapsed)} (timeout_min): AWS goes on; the same command again "
                "goes on waiting"
            )
        time.sleep(patience.poll_seconds)
