"""What Slurm says of jobs, in as few questions as possible: sacct where there is accounting, then squeue.

Slurm's own state decides, not what a job left behind: an error in a log may be followed by a successful start in place,
and a job that was killed leaves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.executors.slurm.asking import NoAnswer, ask, words

DONE = "COMPLETED"
# Every other state that Slurm 22 to 25 has is one of a job that may still run.
ENDED = frozenset(
    {
        DONE, "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT",
    }
)  # fmt: skip
# Neither accounting nor the controller knows the job: it ended longer than MinJobAge ago, where there is no accounting.
FORGOTTEN = "FORGOTTEN"
_CHUNK = 500
_SECONDS = 60


@dataclass(frozen=True)
class State:
    """Of one job."""

    name: str
    exit_code: int | None = None
    signal: int | None = None
    nodes: str = ""
    reason: str = ""
    """why it waits"""

    @property
    def ended(self) -> bool:
        """True when it won't run any more; never for one that waits for something that can't come."""
        return self.name in ENDED or self.name == FORGOTTEN

    @property
    def succeeded(self) -> bool:
        return self.name == DONE


def states(ids: Iterable[str]) -> dict[str, State]:
    """The state of every job. Raises NoAnswer when squeue fails: then nothing is known."""
    wanted = list(dict.fromkeys(ids))
    found = {job: state for chunk in _chunks(wanted) for job, state in _sacct(chunk).items()}
    # The controller has the last word: accounting lags behind, doesn't say why a job waits, and for some seconds after
    # Slurm has queued a preempted job again, or one that lost its node, knows only how its last start ended.
    unsure = [job for job in wanted if job not in found or not found[job].succeeded]
    for chunk in _chunks(unsure):
        found.update({job: _newer(now, found.get(job)) for job, now in _squeue(chunk).items()})
    return {job: found.get(job, State(FORGOTTEN)) for job in wanted}


def _newer(now: State, noted: State | None) -> State:
    """The controller's state; accounting's where that is the same end, since it has the exit code."""
    return noted if noted is not None and now.ended and noted.name == now.name else now


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]


def _sacct(ids: Sequence[str]) -> dict[str, State]:
    """What accounting knows; nothing where there is none."""
    fields = "JobIDRaw,State,ExitCode,NodeList"
    command = ["sacct", "--allocations", "--noheader", "--parsable2", f"--format={fields}", f"--jobs={','.join(ids)}"]
    try:
        done = ask(command, _SECONDS)
    except NoAnswer:
        return {}
    if done.returncode:
        return {}
    rows = (line.split("|") for line in done.stdout.splitlines())
    # With requeues accounting has several rows of a job: the last is the newest.
    return {row[0]: _state(row[1], row[2], row[3]) for row in rows if len(row) == 4}


def _squeue(ids: Sequence[str]) -> dict[str, State]:
    """What the controller remembers: what waits and runs, and what has ended within MinJobAge."""
    command = ["squeue", "--noheader", "--states=all", "--format=%A|%T|%N|%r", f"--jobs={','.join(ids)}"]
    done = ask(command, _SECONDS)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise NoAnswer(f"squeue failed: {words(done.stderr)}")
    rows = (line.split("|", 3) for line in done.stdout.splitlines())
    return {row[0]: State(row[1], nodes=row[2], reason=_reason(row[3])) for row in rows if len(row) == 4}


def _state(name: str, codes: str, nodes: str) -> State:
    """One row of sacct: "CANCELLED by 1000", "1:0"."""
    code, _, signal = codes.partition(":")
    numbers = [int(part) if part.isdigit() else None for part in (code, signal)]
    return State((name.split() or [""])[0], numbers[0], numbers[1] or None, "" if nodes == "None assigned" else nodes)


def _reason(text: str) -> str:
    return "" if text in ("None", "(null)") else text


def cancel(ids: Sequence[str]) -> None:
    """scancel. Raises NoAnswer when Slurm doesn't take it; jobs that have ended are no fault."""
    for chunk in _chunks(ids):
        done = ask(["scancel", *chunk], _SECONDS, advice="some of the jobs may go on: try it again")
        if done.returncode and "Invalid job id" not in done.stderr:
            raise NoAnswer(f"scancel failed: {words(done.stderr)}")
