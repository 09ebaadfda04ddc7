"""What ends a job, who starts it again, and that nothing but the steps since the last checkpoint is lost.

Each run is compared bit for bit with one that nothing disturbed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from filelock import FileLock

from launcher.paths import ROOT
from launcher.run_dir.attempts import Attempts
from tests.limits import PATIENCE, until
from tests.resuming import DROPOUT, SETTINGS, assert_same, start
from tests.slurm.cluster import signal_job
from tests.slurm.conftest import User

TWO_NODES = ("parallelism=ddp2", "cluster.processes_per_node=1")
# A process of a job would take the CPUs of its node, one of this machine's its share of them: with AVX-512 sums are
# rounded otherwise by two threads than by one.
THREADS = {"OMP_NUM_THREADS": "1"}


def with_fault(**what: object) -> str:
    """The setting that has a fault happen in a job's processes, by default when a line is written to metrics.jsonl."""
    fault = json.dumps({"op": "open", "path": "metrics.jsonl:a$", **what})  # without what Hydra's quotes would change
    variables = THREADS | {"PYTHONPATH": str(ROOT / "tests" / "faults"), "TRNTUNE_FAULT": fault}
    return f"cluster.environment={[f'{name}={value}' for name, value in variables.items()]}"


def slowly(seconds: float) -> str:
    """Has every step, which writes a line, take so much longer: there is time to end the job in between."""
    return with_fault(**{"from": 1}, sleep=seconds)


def submit(user: User, name: str, *arguments: str, seconds: float = 0.5):
    settings = [line for line in SETTINGS if not line.startswith("hydra.run.dir")]
    ledger = user.submit(name, *settings, DROPOUT, slowly(seconds), *arguments)
    return user.directory / name, ledger.runs[0].current()["train"].id


def at_step(run, step: int) -> None:
    """Wait until the run has a checkpoint of this step or a later one."""

    def there() -> bool:
        names = [
            path.name for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdigit()
        ]
        return any(int(name.removeprefix("step-")) >= step for name in names)

    until(there, every=0.05)


def outcomes(run) -> list[str | None]:
    return [attempt.outcome for attempt in Attempts(run / "attempts.jsonl").read()]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process, undisturbed."""
    return _undisturbed(tmp_path_factory, "one")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes, undisturbed."""
    return _undisturbed(tmp_path_factory, "two", "parallelism=ddp2")


def _undisturbed(factory, name, *arguments):
    """One for all workers of pytest-xdist."""
    base = factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"undisturbed-{name}"
    with FileLock(f"{directory}.lock"):
        if not (directory / "stages" / "train.json").exists():
            run = start(directory, DROPOUT, *arguments, timeout=PATIENCE, variables=THREADS)
            assert run.process.returncode == 0, run.process.stderr
    return directory


def attempt_goes_on(run, number: int, job: str, slurm) -> None:
    """Wait until Slurm has started the job again and the attempt has ended a step of its own."""
    until(lambda: slurm.field(job, "Restarts") == str(number - 1), every=0.3)
    until(lambda: len(outcomes(run)) == number, every=0.1)
    metrics = run / "metrics.jsonl"
    begun = metrics.read_bytes().count(b'"train"')
    until(lambda: metrics.read_bytes().count(b'"train"') > begun, every=0.05)


@pytest.mark.long
def test_a_node_that_is_lost_costs_the_steps_since_the_checkpoint(user, slurm, two):
    run, job = submit(user, "r", *TWO_NODES)
    at_step(run, 6)
    assert slurm.field(job, "NumNodes") == "2"
    victim = slurm.run("squeue", "-h", "-j", job, "-o", "%N").strip()
    names = slurm.run("scontrol", "show", "hostnames", victim).split()
    slurm.kill_node(names[1])
    until(lambda: slurm.field(job, "Restarts") == "1", every=0.3)
    slurm.start_node(names[1])
    assert user.wait("r") == 0
    assert slurm.state(job) == "COMPLETED"
    # The rank that is left may have seen the connection end, or been told to leave, or was killed before it could.
    assert outcomes(run)[0] in ("died", "failed", "suspended")
    assert outcomes(run)[1:] == ["finished"]
    assert Attempts(run / "attempts.jsonl").read()[0].lost_steps <= 3  # save_every
    assert_same(run, two)
    until(lambda: slurm.idle() == set(slurm.names))


@pytest.mark.long
def test_the_first_node_may_be_the_one(user, slurm, two):
    """It runs the batch script, and the rendezvous was there."""
    run, job = submit(user, "r", *TWO_NODES)
    at_step(run, 3)
    name = slurm.field(job, "BatchHost")
    slurm.kill_node(name)
    until(lambda: slurm.field(job, "Restarts") == "1", every=0.3)
    slurm.start_node(name)
    assert user.wait("r") == 0
    assert_same(run, two)
    until(lambda: slurm.idle() == set(slurm.names))


@pytest.mark.long
def test_what_has_slurm_start_a_job_again_costs_no_step(user, slurm, one):
    """Preemption, scontrol requeue, and the signal before the time limit, one after the other."""
    run, job = submit(user, "r", seconds=2)
    at_step(run, 3)
    urgent = ("sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null",
              "--wrap=sleep 3")  # fmt: skip
    other = slurm.run(*urgent).strip()
    slurm.wait_for(other, "COMPLETED")
    attempt_goes_on(run, 2, job, slurm)
    slurm.run("scontrol", "requeue", job)
    attempt_goes_on(run, 3, job, slurm)
    signal_job(slurm, job, signal.SIGUSR2)
    until(lambda: slurm.field(job, "Restarts") == "3", every=0.3)
    assert user.wait("r") == 0
    assert outcomes(run) == ["suspended", "suspended", "suspended", "finished"]
    assert [attempt.lost_steps for attempt in Attempts(run / "attempts.jsonl").read()][:3] == [0, 0, 0]
    assert_same(run, one)


@pytest.mark.long
def test_a_time_limit_is_a_pause_for_every_process_of_both_nodes(user, slurm, two):
    # Slurm may send its signal up to a minute early: here 30 to 90 seconds after a start. The 20 lines of metrics.jsonl
    # take more, and the start on a loaded machine less.
    run, job = submit(user, "r", *TWO_NODES, "cluster.time_limit_min=2", "cluster.leave_seconds=30", seconds=5)
    assert user.wait("r") == 0
    assert slurm.state(job) == "COMPLETED"
    assert int(slurm.field(job, "Restarts")) >= 1
    assert set(outcomes(run)[:-1]) == {"suspended"}
    assert outcomes(run)[-1] == "finished"
    assert_same(run, two)


@pytest.mark.long
def test_a_small_stage_that_reaches_its_time_limit_has_failed_and_says_why(user, slurm):
    ledger = user.submit("r", "stages=[fetch]", with_fault(op="fsync", path="fetch.json", sleep=60, **{"from": 1}))
    [job] = ledger.ids()
    until(lambda: slurm.processes(job, "launcher.jobs.run_stage"))
    signal_job(slurm, job, signal.SIGUSR2)
    assert user.wait("r") == 1
    assert (slurm.state(job), slurm.field(job, "Restarts")) == ("FAILED", "0")
    [log] = (user.directory / "r" / "logs").glob("*_log.out")
    assert "cluster.small.time_limit_min=MINUTES" in log.read_text()


@pytest.mark.long
def test_a_killed_process_ends_the_step_and_the_run_has_failed(user, slurm, two):
    run, job = submit(user, "r", *TWO_NODES)
    at_step(run, 3)
    workers = [process for process in slurm.processes(job, "launcher.jobs.run_stage") if "torch.distributed" not in
               " ".join(process.cmdline())]  # fmt: skip
    assert len(workers) == 2
    workers[0].kill()
    assert slurm.wait_for(job, "FAILED", "COMPLETED", "CANCELLED") == "FAILED"
    assert slurm.field(job, "Restarts") == "0"
    # Were a process missed, it would train on unseen.
    until(lambda: not slurm.processes(job, ""))
    assert subprocess.run(["pgrep", "-f", str(run)], capture_output=True, check=False).returncode != 0
    assert user.wait("r") == 1
    assert "train failed (FAILED" in user.launcher("status", str(run)).stdout
    assert user.launcher("retry", str(run)).returncode == 0
    assert user.wait("r") == 0
    assert_same(run, two)


@pytest.mark.long
def test_scancel_ends_it_for_good_with_a_checkpoint(user, slurm, one):
    run, job = submit(user, "r")
    at_step(run, 3)
    slurm.run("scancel", job)
    slurm.wait_for(job, "CANCELLED")
    assert user.wait("r") == 1
    assert outcomes(run) == ["suspended"]
    assert slurm.field(job, "Restarts") == "0"
    assert user.launcher("retry", str(run)).returncode == 0
    assert user.wait("r") == 0
    assert_same(run, one)


@pytest.mark.long
def test_auto_resume_runs_the_step_again_in_place(user, slurm, two):
    run, job = submit(user, "r", *TWO_NODES, "cluster.auto_resume=true")
    at_step(run, 6)
    names = slurm.run("scontrol", "show", "hostnames", slurm.field(job, "NodeList")).split()
    (slurm.directory / "faults" / names[1]).touch()
    [victim, *_] = [process for process in slurm.processes(job, "torch.distributed.run")
                    if process.environ().get("SLURMD_NODENAME") == names[1]]  # fmt: skip
    victim.kill()
    assert user.wait("r") == 0
    assert slurm.field(job, "Restarts") == "0"
    assert "the step is run again" in "".join(log.read_text() for log in (run / "logs").glob("*_log.out"))
    assert len(outcomes(run)) == 2
    assert outcomes(run)[1] == "finished"
    assert_same(run, two)


@pytest.mark.long
def test_a_run_that_gets_no_further_is_given_up(user, slurm):
    """Every start is killed at its third line: Slurm is asked to start it again, but not for ever."""
    user.submit("r", "training.save_every=100", with_fault(count=3, signal=9))
    run = user.directory / "r"
    for _ in range(3):
        assert user.wait("r") == 1
        assert user.launcher("retry", str(run)).returncode == 0
    assert user.wait("r") == 1
    assert outcomes(run) == ["died"] * 3  # the fourth start was refused before it could be an attempt
    log = sorted((run / "logs").glob("*_log.out"), key=lambda path: path.stat().st_mtime)[-1]
    assert "3 attempts in a row got no further than step" in log.read_text()
