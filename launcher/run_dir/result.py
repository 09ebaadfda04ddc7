"""How a stage, or one attempt at training, ended: the words that stand in a run directory. Imports no torch."""

from __future__ import annotations

from enum import Enum


class RunStatus(str, Enum):
    """``status`` of stages/<stage>.json, and ``outcome`` of attempts.jsonl. A member is its word, also in JSON."""

    FINISHED = "finished"
    EARLY_STOPPED = "early_stopped"
    """evaluation stopped improving; the best weights are kept"""
    INTERRUPTED = "interrupted"
    """ended by Ctrl-C, with what was reached by then"""
    SUSPENDED = "suspended"
    """ended without a result: the last step's checkpoint is saved, and the run can go on"""
    FAILED = "failed"
    DIED = "died"
    """without a word, which the next start writes down"""
    TRACED = "traced"
    """a trial run for the compiler: nothing was executed"""

    __str__ = str.__str__


COMPLETE = (RunStatus.FINISHED, RunStatus.EARLY_STOPPED)
"""The work is done: there is nothing to go on with."""
