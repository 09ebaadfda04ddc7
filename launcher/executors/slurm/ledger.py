"""Which jobs a sweep or a run was submitted as: the `jobs` of sweep.json, or jobs.json in a single run's directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.io import write_json
from launcher.paths import shown

SWEEP, JOBS = "sweep.json", "jobs.json"


@dataclass(frozen=True)
class Job:
    """One stage, as it was submitted; a stage that was submitted again has several."""

    stage: str
    id: str
    code: str
    """the snapshot that it runs"""


@dataclass
class RunJobs:
    """A run and its jobs, oldest first."""

    directory: Path
    overrides: list[str]
    jobs: list[Job] = field(default_factory=list)
    exit_code: int | None = None
    """noted when all runs had ended"""
    stages: list[str] = field(default_factory=list)
    """that the newest submission was to submit: all of them, unless it broke off"""
    done: list[str] = field(default_factory=list)
    """that had finished before it, by their results: what is done is done, however the job ended that did it"""

    def current(self) -> dict[str, Job]:
        """The newest job of each stage."""
        return {job.stage: job for job in self.jobs}

    def plan(self, wanted: Sequence[str], left: Sequence[str]) -> None:
        """Of the ``wanted`` stages those that are ``left`` are about to be submitted, the others are done."""
        self.stages, self.done = list(left), [stage for stage in wanted if stage not in left]

    def decisive(self) -> list[Job]:
        """The jobs that say how the run stands: not those of stages that were done without them, or aren't wanted."""
        planned = self.stages or self.done
        return [job for stage, job in self.current().items() if not planned or stage in self.stages]

    def missing(self) -> str | None:
        """The first stage that has no job, although it was to have one."""
        return next((stage for stage in self.stages if stage not in self.current()), None)


@dataclass
class Ledger:
    """Everything that was submitted together."""

    directory: Path
    overrides: list[str]
    runs: list[RunJobs]
    single: bool
    report: Job | None = None
    mlflow: dict[str, str] | None = None
    """the parent run of a sweep"""

    def of(self, name: str) -> RunJobs:
        """The run of this name. Raises KeyError."""
        return next(iter(self.runs)) if self.single else {run.directory.name: run for run in self.runs}[name]

    @property
    def file(self) -> Path:
        return self.directory / (JOBS if self.single else SWEEP)

    def write(self) -> None:
        """Write it whole, atomically: after every submission, so that no job is forgotten."""
        runs = [
            {
                "directory": "." if self.single else run.directory.name,
                "overrides": run.overrides,
                "exit_code": run.exit_code,
                "stages": run.stages,
                "done": run.done,
                "jobs": [asdict(job) for job in run.jobs],
            }
            for run in self.runs
        ]
        report = asdict(self.report) if self.report else None
        write_json(self.file, {"overrides": self.overrides, "runs": runs, "mlflow": self.mlflow, "report": report})

    def ids(self) -> list[str]:
        """The current job of every stage of every run, and the report's."""
        found = [job.id for run in self.runs for job in run.current().values()]
        return found + ([self.report.id] if self.report else [])


def read(directory: Path) -> Ledger:
    """What was submitted from ``directory``. Raises UsageError where nothing was."""
    directory = directory.expanduser().absolute()
    if not directory.is_dir():
        raise UsageError(f"{shown(directory)}: no such directory; give a sweep or a run that launch.py has submitted")
    file = next((directory / name for name in (SWEEP, JOBS) if (directory / name).is_file()), None)
    if file is None:
        raise UsageError(
            f"{shown(directory)}: nothing was submitted from here (no {SWEEP}, no {JOBS}); "
            "give a sweep or a run that was started with cluster=slurm or cluster=hyperpod"
        )
    try:
        return _parse(json.loads(file.read_text(encoding="utf-8")), directory, file.name == JOBS)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{shown(file)}: not a record of submissions ({error!r}); restore it from a copy") from None


def _parse(content: dict[str, Any], directory: Path, single: bool) -> Ledger:
    runs = [
        RunJobs(
            directory if single else directory / run["directory"],
            list(run["overrides"]),
            [Job(**job) for job in run.get("jobs", [])],
            run.get("exit_code"),
            list(run.get("stages", [])),
            list(run.get("done", [])),
        )
        for run in content["runs"]
    ]
    report = content.get("report")
    return Ledger(
        directory, list(content["overrides"]), runs, single, Job(**report) if report else None, content.get("mlflow")
    )
