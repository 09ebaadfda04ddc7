"""The jobs of a submission and what each waits for: a chain of stages for each run, and a report after all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.config.schema import Config
from launcher.jobs.job import REPORT, Job, job_of
from launcher.jobs.variables import variables

# A run's name and a stage.
Key = tuple[str, str]


@dataclass(frozen=True)
class PlannedJob:
    """A job before it is submitted."""

    run: str
    job: Job
    configured: Mapping[str, str] = field(default_factory=dict)
    """variables that the configuration sets"""
    after_success: list[Key] = field(default_factory=list)
    after_end: list[Key] = field(default_factory=list)

    @property
    def stage(self) -> str:
        return self.job.stage

    @property
    def key(self) -> Key:
        return self.run, self.stage

    @property
    def name(self) -> str:
        """What squeue shows; the stage first, since it cuts names off."""
        return f"{self.stage}.{self.run}"[:64]


def plan_jobs(
    runs: Sequence[tuple[str, Config, list[str]]],
    max_parallel: int | None,
    report: Config | None,
    queued: Sequence[Key] = (),
) -> list[PlannedJob]:
    """All jobs in the order of their submission. ``runs``: name, configuration and stages that are still to run.

    A stage starts when the one before has succeeded. At most ``max_parallel`` runs are at work: each further one waits
    for the end, good or bad, of the one that many before it. ``report``: the configuration of the report's job, which
    follows the end of all; None: no report. ``queued``: the last jobs of runs that an earlier submission has left in
    the queue; they count as runs before these.
    """
    jobs: list[PlannedJob] = []
    last: list[Key] = list(queued)
    for name, config, stages in runs:
        blocked_by = [last[-max_parallel]] if max_parallel and len(last) >= max_parallel else []
        for number, stage in enumerate(stages):
            before = [(name, stages[number - 1])] if number else []
            job, configured = job_of(stage, config), variables(stage, config)
            jobs.append(PlannedJob(name, job, configured, before, [] if number else blocked_by))
        if stages:
            last.append((name, stages[-1]))
    return [*jobs, report_job(report, last)] if report is not None and last else jobs


def report_job(config: Config, after_end: list[Key]) -> PlannedJob:
    """The comparison of a sweep."""
    return PlannedJob(REPORT, job_of(REPORT, config), variables(REPORT, config), [], after_end)


def describe(jobs: Sequence[PlannedJob]) -> list[str]:
    """The dependencies in words, a line for each run."""
    lines = []
    for run in dict.fromkeys(job.run for job in jobs):
        chain = [job for job in jobs if job.run == run]
        waits = chain[0].after_end
        if run == REPORT:
            lines.append(f"{REPORT}: after the end of all {len(waits)} runs, good or bad")
            continue
        after = f", after the end of {waits[0][0]}" if waits else ""
        lines.append(f"{run}: {' -> '.join(_sized(job) for job in chain)}{after}")
    return lines


def _sized(planned: PlannedJob) -> str:
    job = planned.job
    nodes = "1 node" if job.nodes == 1 else f"{job.nodes} nodes"
    each = "" if job.processes_per_node == 1 else f" x {job.processes_per_node} processes"
    return f"{job.stage} ({nodes}{each})"
