"""How far a run is, from what its processes have written: for people who wait."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.executors.slurm.ledger import Job, RunJobs
from launcher.executors.slurm.states import FORGOTTEN, State
from launcher.executors.slurm.task import end_file
from launcher.run_dir.layout import RunDir
from launcher.run_dir.resume import finished

# The last lines of metrics.jsonl; a line has a few hundred bytes.
_TAIL = 32_768

WAITING, RUNNING, DONE, FAILED, CANCELLED, INCOMPLETE = "waiting", "running", "done", "failed", "cancelled", "not begun"


@dataclass(frozen=True)
class Progress:
    """One run, as the table shows it."""

    directory: Path
    state: str
    """one of the words above"""
    stage: str
    detail: str
    """why it waits or failed"""
    step: str
    """last step of all: "6/16" """
    loss: float | None
    tokens_per_second: float | None
    nodes: str
    log: Path | None

    @property
    def ended(self) -> bool:
        return self.state not in (WAITING, RUNNING)


def progress(run: RunJobs, states: dict[str, State]) -> Progress:
    """Put Slurm's states and the run directory together. ``states`` has those of its current jobs."""
    jobs = run.decisive()
    run_dir = RunDir(run.directory)
    job, state = _decisive(jobs, {job.id: with_end(states[job.id], run_dir, job) for job in jobs})
    word, detail = _word(state, job, run)
    if word in (FAILED, CANCELLED) and job is not None and _left_a_result(run_dir, job.stage):
        detail += "; its result is there: retry goes on from it"
    last = _last_step(run_dir.metrics)
    told = job or (run.jobs[-1] if run.jobs else None)
    log = _log(run_dir, told) if told else None
    return Progress(
        run.directory,
        word,
        told.stage if told else "",
        detail,
        _steps(last, run_dir),
        last.get("loss"),
        last.get("tokens_per_second"),
        state.nodes if state and word == RUNNING else "",
        log,
    )


def with_end(state: State, run_dir: RunDir, job: Job) -> State:
    """What the job itself wrote at its end stands in for a state that Slurm has forgotten."""
    if state.name != FORGOTTEN:
        return state
    try:
        code = json.loads(end_file(run_dir.logs, job.id).read_text(encoding="utf-8"))["exit_code"]
    except (OSError, ValueError, KeyError):
        return state
    return State("COMPLETED" if code == 0 else "FAILED", exit_code=code)


def _decisive(jobs: list[Job], states: dict[str, State]) -> tuple[Job | None, State | None]:
    """The job that says how the run stands: the first that hasn't succeeded, else the last."""
    if not jobs:
        return None, None
    job = next((job for job in jobs if not states[job.id].succeeded), jobs[-1])
    return job, states[job.id]


def _left_a_result(run_dir: RunDir, stage: str) -> bool:
    """True where the stage's work is done, whatever Slurm says of the end of its job: a node that was lost or a process
    that crashed on its way out takes nothing back."""
    try:
        return finished(stage, run_dir.load_config(), run_dir)
    except Exception:  # of a table, which must be shown whatever the files hold; retry says what is wrong with them
        return False


def _word(state: State | None, job: Job | None, run: RunJobs) -> tuple[str, str]:
    missing = run.missing()
    if state is None or job is None:
        if run.done and not run.stages:
            return DONE, ""
        return INCOMPLETE, f"{missing} was not submitted" if run.done else "not submitted"
    if state.succeeded:
        return (INCOMPLETE, f"{missing} was not submitted") if missing else (DONE, "")
    if state.name == "CANCELLED":
        return CANCELLED, f"job {job.id} was cancelled"
    if state.name == FORGOTTEN:
        return FAILED, f"Slurm has forgotten job {job.id}, which left no word of its end"
    if state.ended:
        code = f", exit code {state.exit_code}" if state.exit_code else ""
        return FAILED, f"{state.name}{code}"
    return (WAITING, state.reason) if state.name in ("PENDING", "CONFIGURING") else (RUNNING, "")


def _log(run_dir: RunDir, job: Job) -> Path | None:
    """Of the first node's task, where it exists already."""
    file = run_dir.logs / f"{job.id}_0_log.out"
    return file if file.exists() else None


def _last_step(metrics: Path) -> dict[str, Any]:
    """The newest line of a step; empty before the first."""
    try:
        with metrics.open("rb") as stream:
            stream.seek(max(0, metrics.stat().st_size - _TAIL))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # cut off by the window, or being written
            continue
        if isinstance(record, dict) and record.get("event") == "train":
            return record
    return {}


def _steps(last: dict[str, Any], run_dir: RunDir) -> str:
    if "step" not in last:
        return ""
    try:
        total = json.loads(run_dir.plan.read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError):  # a table with a hole is more useful than none
        total = None
    return f"{last['step']}/{total}" if total else str(last["step"])
