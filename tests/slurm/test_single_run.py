"""One run on a real Slurm: its chain of stages, its end, and that it runs what was submitted."""

from __future__ import annotations

import json
import shutil

import pytest

from launcher.executors.slurm.ledger import read
from launcher.executors.slurm.snapshot import PARTS
from launcher.paths import ROOT
from tests.limits import until
from tests.slurm.conftest import QUICK, User
from tests.test_secrets import PLANTED, leaks

pytestmark = pytest.mark.long


def test_a_run_is_a_chain_of_jobs_and_its_results_are_there(user, slurm):
    ledger = user.submit("run 1", "stages=[fetch,train,merge]", env=PLANTED | {"http_proxy": ""})
    assert [job.stage for job in ledger.runs[0].jobs] == ["fetch", "train", "merge"]
    assert user.wait("run 1") == 0
    run = user.directory / "run 1"
    assert sorted(path.stem for path in (run / "stages").iterdir()) == ["fetch", "merge", "train"]
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert (run / "merged" / "model.safetensors").is_file()
    for job in ledger.runs[0].jobs:
        assert slurm.state(job.id) == "COMPLETED"
    done = user.launcher("status", str(run), "--json")
    [status] = json.loads(done.stdout)["runs"]
    assert (status["state"], status["step"]) == ("done", "6/6")
    assert status["loss"] > 0
    assert status["tokens_per_second"] > 0
    assert (run / "logs").stat().st_mode & 0o777 == 0o700
    assert leaks(user.directory, done) == []
    again = user.launcher("retry", str(run))
    assert again.returncode == 0
    assert "all stages have finished already" in again.stderr
    assert read(run).ids() == ledger.ids()


def test_a_queued_job_runs_the_code_of_its_submission(slurm, tmp_path):
    """Submitted from within the checkout, and as on Python 3.10, which has no PYTHONSAFEPATH."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for part in PARTS:
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, checkout / part)
    user = User(slurm, checkout)
    options = ("cluster.sbatch_args=[--hold]", "cluster.environment=['PYTHONSAFEPATH=']")
    user.launch(*QUICK, "hydra.run.dir=r", *options, root=checkout)
    for file in (
        "trainer/train.py",
        "trainer/fetch/stage.py",
        "launcher/jobs/run_stage.py",
        "launcher/executors/slurm/task.py",
    ):
        (checkout / file).write_text("raise SystemExit('edited after the submission')\n")
    for job in read(checkout / "r").ids():
        slurm.run("scontrol", "release", job)
    # From elsewhere: `python -m launcher` would import the edited modules of the directory that it is started in.
    code = User(slurm, tmp_path).wait("checkout/r")
    assert code == 0, [log.read_text() for log in (checkout / "r" / "logs").glob("*_log.out")]


def test_a_stage_that_fails_ends_the_chain_and_retry_does_the_rest(user, slurm):
    rows = user.directory / "rows.jsonl"
    text = "".join(
        json.dumps({"instruction": f"What is {n}?", "response": f"A number: {n}."}) + "\n" for n in range(60)
    )
    rows.write_text(text)
    # The rows fill two batches: no step may be left out of the measurement.
    data = ("dataset=jsonl", "dataset.path=rows.jsonl", "dataset.eval_samples=8", "tracking.skip_steps=0")
    ledger = user.submit("r", *data, "cluster.sbatch_args=[--hold]")
    rows.unlink()
    fetch, train = ledger.ids()
    for job in (fetch, train):
        slurm.run("scontrol", "release", job)
    assert user.wait("r") == 1
    assert slurm.state(fetch) == "FAILED"
    # Slurm takes back what can't come any more when it looks at what waits the next time.
    assert slurm.wait_for(train, "CANCELLED") == "CANCELLED"
    assert slurm.field(fetch, "ExitCode") != "0:0"
    shown = user.launcher("status", str(user.directory / "r")).stdout
    assert "fetch failed (FAILED" in shown
    rows.write_text(text)
    assert user.launcher("retry", str(user.directory / "r"), "cluster.sbatch_args=[]").returncode == 0
    assert user.wait("r") == 0


def test_what_slurm_would_refuse_is_said_before_anything_is_made(user):
    done = user.try_launch(*QUICK, "cluster.partition=nowhere")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "invalid partition" in line
    assert "partition=nowhere" in line
    done = user.try_launch(*QUICK, "parallelism.data_parallel=8", "training.global_batch_size=8",
                           "cluster.processes_per_node=1")  # fmt: skip
    assert done.returncode == 1
    assert "nodes=8" in done.stderr
    assert list(user.directory.iterdir()) == []


def test_cancel_takes_the_jobs_back(user, slurm):
    ledger = user.submit("r", "cluster.sbatch_args=[--hold]")
    done = user.launcher("cancel", str(user.directory / "r"))
    assert done.returncode == 0
    assert "2 jobs cancelled" in done.stdout
    until(lambda: {slurm.state(job) for job in ledger.ids()} == {"CANCELLED"})
    assert user.wait("r") == 1
