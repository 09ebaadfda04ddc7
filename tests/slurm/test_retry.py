"""What retry adds to a sweep that is partly in the queue, and a submission that breaks off."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from launcher.executors.slurm.ledger import read
from tests.limits import until
from tests.slurm.cluster import Slurm
from tests.slurm.conftest import QUICK

pytestmark = pytest.mark.long

HELD = ("cluster.exclusive=false", "cluster.sbatch_args=[--hold]", "hydra.sweep.dir=sweep", "-m")


def dependencies(slurm: Slurm, job: str) -> set[str]:
    """ids of the jobs that it waits for."""
    asked = slurm.field(job, "Dependency")
    return {word.partition("(")[0].rpartition(":")[2] for word in asked.split(",")} - {"null", ""}


def test_runs_that_are_submitted_again_wait_for_those_in_the_queue(user, slurm):
    """One after another, as a tracking file without a server needs it."""
    user.launch(*QUICK, *HELD, "seed=range(3)", "stages=[fetch]", "cluster.max_parallel=1")
    before = read(user.directory / "sweep")
    first, second, third = [run.current()["fetch"].id for run in before.runs]
    assert dependencies(slurm, before.report.id) == {first, second, third}
    slurm.run("scancel", first)
    slurm.wait_for(first, "CANCELLED")
    done = user.launcher("retry", str(user.directory / "sweep"))
    assert done.returncode == 0, done.stderr
    assert "submitted sweep: 1 runs" in done.stdout
    after = read(user.directory / "sweep")
    again = after.runs[0].current()["fetch"].id
    assert [len(run.jobs) for run in after.runs] == [2, 1, 1]
    assert dependencies(slurm, again) == {third}
    assert dependencies(slurm, after.report.id) == {again, second, third}
    assert slurm.wait_for(before.report.id, "CANCELLED") == "CANCELLED"


def test_a_report_that_failed_is_made_again(user, slurm):
    user.launch(*QUICK, "cluster.exclusive=false", "stages=[fetch]", "hydra.sweep.dir=sweep", "-m", "seed=0")
    sweep = user.directory / "sweep"
    before = read(sweep)
    slurm.run("scancel", before.report.id)
    assert user.wait("sweep") == 1
    assert user.launcher("retry", str(sweep)).returncode == 0
    assert [len(run.jobs) for run in read(sweep).runs] == [1]
    assert user.wait("sweep") == 0


def sbatch(slurm: Slurm, directory: Path, at_the_third: str) -> dict[str, str]:
    """The environment of somebody whose third job does not go through as the others do: ``at_the_third`` are lines of
    shell before the real sbatch is called."""
    real = shutil.which("sbatch", path=slurm.environment["PATH"])
    program = directory / "sbatch"
    count = shlex.quote(str(directory / "count"))
    program.write_text(
        f'#!/bin/sh\nif [ "$1" != --test-only ]; then\n  printf x >> {count}\n'
        f'  if [ $(wc -c < {count}) -eq 3 ]; then {at_the_third}; fi\nfi\nexec {real} "$@"\n'
    )
    program.chmod(0o755)
    return {"PATH": f"{directory}:{slurm.environment['PATH']}"}


def test_of_a_chain_that_breaks_off_nothing_stays_in_the_queue(user, slurm, tmp_path):
    """Its second job is refused: by a limit, or a controller that is restarted."""
    limited = sbatch(slurm, tmp_path, "echo QOSMaxSubmitJobPerUserLimit >&2; exit 1")
    done = user.try_launch(*QUICK, *HELD, "seed=0,1", "stages=[fetch,train,merge]", env=limited)
    assert done.returncode == 1
    assert "QOSMaxSubmitJobPerUserLimit; 0 of 7 jobs are in the queue" in done.stderr
    assert [run.jobs for run in read(user.directory / "sweep").runs] == [[], []]
    until(lambda: slurm.run("squeue", "-h", "-o", "%A") == "")
    assert "not begun" in user.launcher("status", str(user.directory / "sweep")).stdout
    done = user.launcher("retry", str(user.directory / "sweep"))
    assert done.returncode == 0, done.stderr
    after = read(user.directory / "sweep")
    assert [[job.stage for job in run.jobs] for run in after.runs] == [["fetch", "train", "merge"]] * 2


def test_a_single_run_that_was_refused_can_be_submitted_again(user, slurm, tmp_path):
    limited = sbatch(slurm, tmp_path, "echo QOSMaxSubmitJobPerUserLimit >&2; exit 1")
    run = ("cluster.sbatch_args=[--hold]", "hydra.run.dir=r", "stages=[fetch,train,merge]")
    done = user.try_launch(*QUICK, *run, env=limited)
    assert done.returncode == 1
    assert "0 of 3 jobs are in the queue" in done.stderr
    done = user.launcher("retry", str(user.directory / "r"))
    assert done.returncode == 0, done.stderr
    assert [job.stage for job in read(user.directory / "r").runs[0].jobs] == ["fetch", "train", "merge"]


def test_ctrl_c_forgets_no_job(user, slurm, tmp_path):
    """It comes while a job is handed over: its chain is finished and written down before the end."""
    interrupted = sbatch(slurm, tmp_path, "kill -INT $PPID")
    done = user.try_launch(*QUICK, *HELD, "seed=range(3)", env=interrupted)
    assert done.returncode == 130
    assert "4 of 7 jobs are in the queue" in done.stderr
    found = read(user.directory / "sweep")
    assert [len(run.jobs) for run in found.runs] == [2, 2, 0]
    assert set(slurm.run("squeue", "-h", "-o", "%A").split()) == set(found.ids())


def test_a_stage_that_is_done_is_done_however_its_job_ended(user, slurm):
    """A library that crashes on its way out, after the stage has written its result: Slurm says FAILED, and every
    start would end so."""
    crash = user.directory / "crash"
    crash.mkdir()
    (crash / "sitecustomize.py").write_text(
        "import atexit, os, sys\nif 'launcher.jobs.run_stage' in sys.orig_argv and 'fetch' in sys.orig_argv:\n"
        "    atexit.register(os._exit, 7)\n"
    )
    ledger = user.submit("r", "stages=[fetch]", f"cluster.environment=['PYTHONPATH={crash}']")
    run = user.directory / "r"
    assert user.wait("r") == 1
    assert slurm.state(ledger.ids()[0]) == "FAILED"
    assert "its result is there: retry goes on from it" in user.launcher("status", str(run)).stdout
    done = user.launcher("retry", str(run))
    assert (done.returncode, "all stages have finished already" in done.stderr) == (0, True)
    assert user.wait("r") == 0
    # Where there are more stages, it goes on with the next one.
    done = user.launcher("retry", str(run), "stages=[fetch,train]", "cluster.sbatch_args=[--hold]")
    assert done.returncode == 0, done.stderr
    [now] = json.loads(user.launcher("status", str(run), "--json").stdout)["runs"]
    assert (now["stage"], now["state"]) == ("train", "waiting")
    assert [job.stage for job in read(run).runs[0].jobs] == ["fetch", "train"]
