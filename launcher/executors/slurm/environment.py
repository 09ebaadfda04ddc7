"""The environment that jobs are submitted from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.jobs.helper_process import outside_of_torchrun

# Of a job that this process runs in: they would be taken for wishes about the new one.
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
# Which Slurm it is. SBATCH_*, a site's or a user's defaults, stay too.
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")


def submission_environment() -> dict[str, str]:
    """This process's environment without what belongs to a job that it may run in."""
    around = outside_of_torchrun()
    return {name: value for name, value in around.items() if name in _KEPT or not name.startswith(_OF_A_JOB)}


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
