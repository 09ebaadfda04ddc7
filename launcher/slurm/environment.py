"""The environment that jobs are submitted from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Of a job that this process runs in: they would be taken for wishes about the new one.
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
_OF_A_PROCESS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# Which Slurm it is. SBATCH_*, a site's or a user's defaults, stay too.
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")


def submission_environment() -> dict[str, str]:
    """This process's environment without what belongs to a job that it may run in."""
    return {name: value for name, value in os.environ.items() if name in _KEPT or not _is_of_a_job(name)}


def _is_of_a_job(name: str) -> bool:
    return name.startswith(_OF_A_JOB) or name in _OF_A_PROCESS


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Inside, os.environ is ``submission_environment()``: submitit calls sbatch with it."""
    before = dict(os.environ)
    kept = submission_environment()
    try:
        os.environ.clear()
        os.environ.update(kept)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
