"""Sweeps on a real Slurm: resources of each run, the report after all, throttling, and what a killed run costs."""

from __future__ import annotations

import json
import time

import pytest

from launcher.executors.slurm.ledger import read
from tests.limits import until
from tests.slurm.conftest import QUICK
from tests.slurm.test_faults import slowly, with_fault

pytestmark = pytest.mark.long

SHARED = "cluster.exclusive=false"  # the 4 nodes pose as 128 CPUs each: runs need not wait for one another


def submit(user, *arguments: str):
    user.launch(*QUICK, SHARED, "hydra.sweep.dir=sweep", "-m", *arguments)
    return read(user.directory / "sweep")


def kill(slurm, run, stage: str) -> None:
    """SIGKILL to the processes of a stage, as the kernel sends it when memory is short."""
    found = []
    until(lambda: found.extend(slurm.processes(run.current()[stage].id, "launcher.jobs.run_stage")) or found)
    for process in found:
        process.kill()


def log_of_report(ledger) -> str:
    return (ledger.directory / "logs" / f"{ledger.report.id}_0_log.out").read_text()


def test_every_run_has_its_own_nodes_and_a_killed_one_costs_only_itself(user, slurm):
    ledger = submit(user, "parallelism=single,ddp2", "cluster.processes_per_node=1", slowly(0.3))
    trains = [run.current()["train"].id for run in ledger.runs]
    assert [slurm.field(job, "NumNodes").split("-")[0] for job in trains] == ["1", "2"]
    kill(slurm, ledger.runs[0], "train")
    assert user.wait("sweep") == 1
    assert [slurm.state(job) for job in trains] == ["FAILED", "COMPLETED"]
    assert "1 of 2 runs done, 1 failed" in log_of_report(ledger)
    report = (user.directory / "sweep" / "report" / "report.md").read_text()
    assert r"0\_parallelism=single: failed with exit code" in report

    done = user.launcher("retry", str(user.directory / "sweep"))
    assert done.returncode == 0, done.stderr
    again = read(user.directory / "sweep")
    assert [len(run.jobs) for run in again.runs] == [3, 2]
    assert user.wait("sweep") == 0
    assert "2 of 2 runs done" in log_of_report(again)
    noted = json.loads((user.directory / "sweep" / "sweep.json").read_text())["runs"]
    assert [run["exit_code"] for run in noted] == [0, 0]
    for run, processes in zip(ledger.runs, (1, 2), strict=True):
        result = json.loads((run.directory / "stages" / "train.json").read_text())
        assert result["samples_per_second"] == pytest.approx(processes * result["samples_per_second_per_replica"])


@pytest.mark.long
def test_sixteen_runs_of_which_three_are_killed(user, slurm):
    """Of the first stage only, slowed down: training sixteen times would take the tests' time."""
    slow = with_fault(op="fsync", path="fetch.json", sleep=3, **{"from": 1})
    held = "cluster.sbatch_args=[--hold]"  # a submission waits for no run: none can start before it is over
    ledger = submit(user, "stages=[fetch]", "seed=range(16)", "cluster.max_parallel=4", slow, held)
    assert len(ledger.runs) == 16
    slurm.run("scontrol", "release", ",".join(ledger.ids()))
    victims = [ledger.runs[number] for number in (1, 3, 9)]
    for run in victims:
        kill(slurm, run, "fetch")
    most = 0
    while slurm.state(ledger.report.id) in ("PENDING", "RUNNING", "COMPLETING"):
        most = max(most, slurm.run("squeue", "-h", "-t", "running", "-o", "%A").count("\n"))
        time.sleep(0.2)  # only how often it is looked: a job takes three seconds or more
    assert 1 < most <= 4
    assert user.wait("sweep") == 1
    shown = json.loads(user.launcher("status", str(user.directory / "sweep"), "--json").stdout)
    assert [run["directory"] for run in shown["runs"] if run["state"] == "failed"] == [
        str(run.directory) for run in victims
    ]
    assert sum(run["state"] == "done" for run in shown["runs"]) == 13
    assert "13 of 16 runs done, 3 failed" in log_of_report(ledger)
    assert user.launcher("retry", str(user.directory / "sweep"), "cluster.environment=[]",
                         "cluster.sbatch_args=[]").returncode == 0  # fmt: skip
    again = read(user.directory / "sweep")
    assert sum(len(run.jobs) for run in again.runs) == 19
    assert user.wait("sweep") == 0
    assert "16 of 16 runs done" in log_of_report(again)


def test_what_several_nodes_cannot_share_is_refused(user):
    done = user.try_launch("experiment=tiny", "cluster=slurm", "-m", "seed=0,1")
    assert done.returncode == 2
    assert "SQLite" in done.stderr
    assert list(user.directory.iterdir()) == []
