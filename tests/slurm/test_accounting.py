"""What is known of jobs that have ended: with accounting for ever, without it as long as the controller remembers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.executors.slurm import states as slurm_states
from launcher.executors.slurm.ledger import read
from tests.limits import until
from tests.slurm.cluster import Slurm
from tests.slurm.conftest import User, require

pytestmark = pytest.mark.long

FORGETFUL = 2
"""seconds after which the controllers here forget a job"""


@pytest.fixture(scope="module", params=[True, False], ids=["slurmdbd", "no accounting"])
def forgetful(request) -> Iterator[Slurm]:
    require(request.param)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        with Slurm(Path(directory) / "c", 1, accounting=request.param, min_job_age=FORGETFUL) as cluster:
            yield cluster


def test_ends_are_known_after_the_controller_has_forgotten_them(forgetful, tmp_path, monkeypatch):
    user = User(forgetful, tmp_path)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, forgetful.environment[name])
    good = user.submit("good", "stages=[fetch]")
    bad = user.submit("bad", "stages=[fetch]", "cluster.python=/bin/false")
    gone = user.submit("gone", "stages=[fetch]", "cluster.sbatch_args=[--hold]")
    forgetful.run("scancel", *gone.ids())
    ids = [*good.ids(), *bad.ids(), *gone.ids()]
    # Its own pace: MinJobAge is looked at every half minute or so.
    until(lambda: not forgetful.run("squeue", "-h", "-t", "all", "-o", "%A").split(), every=1)
    found = slurm_states.states(ids)
    if forgetful.accounting:
        assert [found[job].name for job in ids] == ["COMPLETED", "FAILED", "CANCELLED"]
        assert found[ids[1]].exit_code == 1
    else:
        assert {state.name for state in found.values()} == {slurm_states.FORGOTTEN}
    assert user.wait("good") == 0
    assert user.wait("bad") == 1
    assert user.wait("gone") == 1
    shown = user.launcher("status", str(tmp_path / "bad")).stdout
    assert ("FAILED, exit code 1" if forgetful.accounting else "has forgotten job") in shown.replace("\n", " ")
    assert user.launcher("retry", str(tmp_path / "gone"), "cluster.sbatch_args=[]").returncode == 0
    until(lambda: (tmp_path / "gone" / "stages" / "fetch.json").exists())
    assert len(read(tmp_path / "gone").runs[0].jobs) == 2


def test_a_job_that_is_queued_again_never_seems_to_have_ended(forgetful, monkeypatch):
    """For some seconds after a preemption accounting only knows the start that was ended."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, forgetful.environment[name])
    sbatch = ("sbatch", "--parsable", "--exclusive", "--output=/dev/null")
    job = forgetful.run(*sbatch, "--requeue", "--wrap=exec sleep 300").strip()
    forgetful.wait_for(job, "RUNNING")
    until(lambda: slurm_states.states([job])[job].name == "RUNNING")
    urgent = forgetful.run(*sbatch, "--partition=urgent", "--wrap=exec sleep 300").strip()
    seen = set()

    def looked() -> bool:
        state = slurm_states.states([job])[job]
        seen.add((state.name, state.ended))
        return True

    # The only node is taken: it waits, however seldom somebody looks.
    until(lambda: looked() and ("PENDING", False) in seen)
    forgetful.run("scancel", urgent)
    until(lambda: looked() and forgetful.state(job) == "RUNNING" and forgetful.field(job, "Restarts") == "1")
    assert [name for name, ended in seen if ended] == []
