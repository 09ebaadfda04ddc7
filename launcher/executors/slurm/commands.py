"""`python -m launcher status|wait|cancel|retry|report SWEEP`: what can be done with what was submitted."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from launcher.errors import FAILED, TrntuneError, UsageError
from launcher.executors.slurm import ledger as ledgers
from launcher.executors.slurm.asking import NoAnswer
from launcher.executors.slurm.ledger import Ledger
from launcher.executors.slurm.progress import (
    CANCELLED,
    DONE,
    INCOMPLETE,
    RUNNING,
    WAITING,
    Progress,
    progress,
    with_end,
)
from launcher.executors.slurm.progress import FAILED as RUN_FAILED
from launcher.executors.slurm.states import State, cancel, states
from launcher.jobs.helper_process import show
from launcher.jobs.run_stage import patience
from launcher.paths import shown
from launcher.run_dir.layout import RunDir
from launcher.run_dir.lock import RunLock
from launcher.run_dir.resume import holds_run

# Slurm may be restarted while somebody waits for days.
_PATIENCE = 10
# What somebody who waits wants to see first.
_INTEREST = (RUNNING, RUN_FAILED, CANCELLED, INCOMPLETE, WAITING, DONE)


def look(ledger: Ledger) -> tuple[list[Progress], State | None]:
    """Every run, and the report's job. Raises NoAnswer."""
    known = states(ledger.ids())
    report = with_end(known[ledger.report.id], RunDir(ledger.directory), ledger.report) if ledger.report else None
    return [progress(run, known) for run in ledger.runs], report


def status(directory: Path, as_json: bool) -> int:
    """Print how the runs stand. Returns 0."""
    ledger = ledgers.read(directory)
    found, report = look(ledger)
    if as_json:
        print(json.dumps(_as_json(found, report), indent=2))
    else:
        _console().print(table(ledger, found, report))
    return 0


def wait(directory: Path, every: float) -> int:
    """Show how the runs stand until all have ended. Returns 0 when all have succeeded, else 1.

    ``every`` seconds Slurm is asked, in at most two questions for each 500 jobs.
    """
    ledger, failures = ledgers.read(directory), 0
    console = _console()
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            try:
                found, report = look(ledger)
                failures = 0
            except NoAnswer:
                failures += 1
                if failures >= _PATIENCE:
                    raise
                time.sleep(every)
                continue
            ended = all(run.ended for run in found) and (report is None or report.ended)
            if console.is_terminal or ended:
                # What doesn't fit a terminal is cut off below; the last picture stays, and is whole.
                shown_now = found if ended else sorted(found, key=lambda run: _INTEREST.index(run.state))
                live.update(table(ledger, shown_now, report), refresh=True)
            if ended:
                break
            time.sleep(every)
            ledger = ledgers.read(directory)  # a retry beside has other jobs
    return 0 if all(run.state == DONE for run in found) and (report is None or report.succeeded) else FAILED


def cancel_all(directory: Path) -> int:
    """Cancel what hasn't ended. Returns 0."""
    ledger = ledgers.read(directory)
    known = states(ledger.ids())
    still = [job for job, state in known.items() if not state.ended]
    if still:
        cancel(still)
    print(f"{shown(ledger.directory)}: {len(still)} jobs cancelled, {len(known) - len(still)} had ended")
    return 0


def retry(directory: Path, overrides: Sequence[str]) -> list[str]:
    """What to give launch.py to submit again what did not finish; finished stages and runs stay as they are. Raises
    UsageError for what launch.py didn't submit."""
    ledger = ledgers.read(directory)
    if ledger.single and not holds_run(ledger.directory):
        raise UsageError(
            f"{shown(ledger.directory)}: no run of launch.py, so that retry has nothing to start again; give the "
            "command that submitted it (python -m cluster env ...) once more"
        )
    return [f"resume={ledger.directory}", *overrides]


def report(directory: Path) -> int:
    """Compare the runs of a sweep, as its last job does. Returns 0 when there is a report, whatever failed."""
    from launcher.sweep import parent_run as parents

    ledger = ledgers.read(directory)
    if ledger.single:
        raise TrntuneError(f"{shown(directory)} is a single run: python -m postprocess.compare compares runs")
    known = states([job.id for run in ledger.runs for job in run.current().values()])
    found = [progress(run, known) for run in ledger.runs]
    codes = [_exit_code(run, state, known) for run, state in zip(ledger.runs, found, strict=True)]
    # A retry at the same time would lose jobs that are not yet in the file, or write over the codes.
    with RunLock(ledger.directory, "launcher report", patience=patience()):
        _note(ledgers.read(directory), ledger, codes)
    code = 0
    if any(state.state == DONE or (state.directory / "stages" / "train.json").exists() for state in found):
        code = show("postprocess.compare.publish", ledger.directory, "no report")
    print(summary(found))
    parent = parents.stored(ledger.directory)
    if parent is not None and all(state.ended for state in found):
        status = "FINISHED" if all(state.state == DONE for state in found) else "FAILED"
        parents.finish(parent, status, ledger.directory)
    return code


def _note(now: Ledger, before: Ledger, codes: Sequence[int | None]) -> None:
    """Write the runs' exit codes down, for those that nobody has submitted again in the meantime."""
    for run, asked, code in zip(now.runs, before.runs, codes, strict=False):
        if (run.jobs, run.stages, run.done) == (asked.jobs, asked.stages, asked.done):
            run.exit_code = code
    now.write()


def _exit_code(run: ledgers.RunJobs, state: Progress, known: dict[str, State]) -> int | None:
    """Of the first stage that failed; 1 where Slurm names none, as for one that was cancelled. None while it goes
    on."""
    if state.state == DONE:
        return 0
    if not state.ended:
        return None
    codes = [known[job.id].exit_code for job in run.decisive() if not known[job.id].succeeded]
    return next((code for code in codes if code), FAILED)


def summary(found: Sequence[Progress]) -> str:
    """ "37 of 40 runs done, 2 failed, 1 cancelled", and which."""
    count = Counter(run.state for run in found)
    others = "".join(f", {number} {word}" for word, number in count.items() if word != DONE)
    lines = [f"{count[DONE]} of {len(found)} runs done{others}"]
    lines += [f"  {run.directory.name}: {_outcome(run)}" for run in found if run.ended and run.state != DONE]
    return "\n".join(lines)


def _outcome(run: Progress) -> str:
    log = f"; log {shown(run.log)}" if run.log else ""
    return f"{run.stage} {run.state}" + (f" ({run.detail})" if run.detail else "") + log


def table(ledger: Ledger, found: Sequence[Progress], report: State | None) -> Table:
    """What status and wait show. On a narrow terminal names are folded: cut off, they would all look alike."""
    title = escape(f"{shown(ledger.directory)}: {_counts(found, report)}")
    result = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("run", "state", "step", "loss", "tokens/s", "node", "log"):
        result.add_column(name, overflow="fold", no_wrap=name in ("step", "loss", "tokens/s"))
    for run in found:
        result.add_row(
            escape(run.directory.name),
            escape(_state(run)),
            run.step,
            "" if run.loss is None else f"{run.loss:.4f}",
            "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
            escape(run.nodes),
            escape(str(run.log.relative_to(run.directory))) if run.log else "",
        )
    return result


def _state(run: Progress) -> str:
    detail = f" ({run.detail})" if run.detail else ""
    return f"{run.state}{detail}" if run.state == DONE else f"{run.stage} {run.state}{detail}".strip()


def _counts(found: Sequence[Progress], report: State | None) -> str:
    count = Counter(run.state for run in found)
    words = ", ".join(f"{number} {word}" for word, number in count.items())
    return words + (f"; report {report.name.lower()}" if report else "")


def _as_json(found: Sequence[Progress], report: State | None) -> dict[str, Any]:
    runs = [{**asdict(run), "directory": str(run.directory), "log": str(run.log) if run.log else None} for run in found]
    return {"runs": runs, "report": report.name if report else None}


def _console() -> Console:
    # A pipe has no width: a table cut at 80 columns would lose the end of every line.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)
