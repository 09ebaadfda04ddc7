"""What a job does on its nodes: starts, waiting, meeting, and what is not done again."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from omegaconf import OmegaConf

from launcher.errors import TrntuneError
from launcher.executors.slurm import rendezvous
from launcher.executors.slurm.environment import submission_environment
from launcher.executors.slurm.task import StageTask, frozen, frozen_of
from launcher.io import write_atomic, write_json
from launcher.jobs.supervisor import Interrupts
from launcher.run_dir.attempts import Attempts
from launcher.run_dir.layout import RunDir
from launcher.run_dir.lock import LockHeldError, RunLock, runs
from tests.launcher.conftest import single
from tests.launcher.run_dir.test_lock import hold
from tests.limits import PATIENCE, until


def test_a_changed_environment_is_refused():
    now = frozen()
    now.check()
    packages = tuple((name, "0.0" if name == "peft" else version) for name, version in now.packages)
    with pytest.raises(TrntuneError, match=r"peft was 0\.0"):
        replace(now, packages=packages).check()


def test_the_environment_is_that_of_the_python_that_jobs_run_in(tmp_path, capfd):
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    other.chmod(0o755)
    assert frozen_of(str(other)) == frozen_of(None) == frozen()
    other.write_text('#!/bin/sh\necho \'["3.10.1", [["torch", "2.8.0"]]]\'\n')
    elsewhere = frozen_of(str(other))
    with pytest.raises(TrntuneError, match=r"Python was 3\.10\.1"):
        elsewhere.check()
    assert capfd.readouterr().err == ""
    frozen_of(str(tmp_path / "on the nodes only")).check()
    assert "does not run here" in capfd.readouterr().err


def test_a_stage_whose_starts_all_end_with_the_node_is_given_up(tmp_path):
    task = StageTask("fetch", str(tmp_path), str(tmp_path), 1, 1, frozen())
    with pytest.raises(TrntuneError, match="stage fetch was started 3 times without an end"):
        task._run(rendezvous.Step("1", 3, "0", 0, "trn1"), Interrupts())


def test_starts_of_training_that_never_begin_are_given_up_too(tmp_path, monkeypatch):
    """Slurm starts the job again each time, as when the driver takes the node along."""
    task = StageTask("train", str(tmp_path), str(tmp_path), 2, 1, frozen())
    monkeypatch.setattr("launcher.executors.slurm.task.run_stage", lambda *_: 1)
    monkeypatch.setattr(StageTask, "_torchrun_options", lambda *_: [])
    for restarts in range(3):
        for node in (0, 1):
            assert task._run(rendezvous.Step("1", restarts, "0", node, "trn[1-2]"), Interrupts()) == 1
    with pytest.raises(TrntuneError, match="3 attempts in a row got no further than step 0"):
        task._run(rendezvous.Step("1", 3, "0", 0, "trn[1-2]"), Interrupts())


def test_a_start_that_another_process_keeps_out_is_no_attempt(tmp_path, monkeypatch):
    """Nor does it end the attempt of the one that is at work."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)  # which would have it wait
    monkeypatch.setattr("launcher.executors.slurm.task.run_stage", lambda *_: pytest.fail("it was started"))
    attempts = Attempts(tmp_path / "attempts.jsonl")
    attempts.start(attempts.launch())
    hold(tmp_path, host="trn7")
    task = StageTask("train", str(tmp_path), str(tmp_path), 1, 1, frozen())
    for restarts in range(4):
        with pytest.raises(LockHeldError, match="on trn7"):
            task._run(rendezvous.Step("1", restarts, "0", 0, "trn1"), Interrupts())
    assert [(attempt.number, attempt.outcome) for attempt in attempts.read()] == [(1, None)]


def test_a_job_that_is_told_to_leave_does_not_wait_for_its_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setattr("launcher.run_dir.lock.time.sleep", lambda _: pytest.fail("it waits"))
    monkeypatch.setattr("launcher.executors.slurm.task.run_stage", lambda *_: pytest.fail("it was started"))
    hold(tmp_path, host="trn7", slurm_job_id="8")
    interrupts = Interrupts(patient=True)
    interrupts(signal.SIGTERM, None)
    with pytest.raises(LockHeldError):
        StageTask("train", str(tmp_path), str(tmp_path), 1, 1, frozen())._run(
            rendezvous.Step("9", 0, "0", 0, "trn1"), interrupts
        )


@pytest.mark.parametrize(
    ("status", "started"), [("finished", False), ("early_stopped", False), ("interrupted", True), (None, True)]
)
def test_what_a_start_before_has_finished_is_not_done_again(status, started, tmp_path, cwd, monkeypatch, capsys):
    """Its node was lost, or the job requeued, after the result was written; all nodes leave it at that."""
    ran = []
    monkeypatch.setattr("launcher.executors.slurm.task.run_stage", lambda *_: ran.append(1) or 0)
    monkeypatch.setattr(rendezvous, "address_of", lambda _: "10.0.0.7")
    monkeypatch.setattr(rendezvous, "first_node", lambda _: "trn1")
    write_atomic(RunDir(tmp_path).config_file, OmegaConf.to_yaml(OmegaConf.structured(single("cluster=slurm").config)))
    if status is not None:
        write_json(RunDir(tmp_path).stage_file("train"), {"status": status})
    task = StageTask("train", str(tmp_path), str(tmp_path), 2, 1, frozen())
    # The eighth start: what is finished is not given up either.
    for node in (0, 1):
        assert task._run(rendezvous.Step("1", 7, "0", node, "trn[1-2]"), Interrupts()) == 0
    assert len(ran) == (2 if started else 0)
    assert len(Attempts(tmp_path / "attempts.jsonl").read()) == (1 if started else 0)
    assert ("stage train has finished already" in capsys.readouterr().err) is not started


@pytest.mark.parametrize(
    ("stage", "key"), [("compile", "cluster.compile_time_limit_min"), ("merge", "cluster.small.time_limit_min")]
)
def test_a_stage_that_reaches_its_time_limit_says_what_gives_it_more(stage, key, tmp_path, monkeypatch, capsys):
    task = StageTask(stage, str(tmp_path), str(tmp_path), 1, 1, frozen())
    monkeypatch.setattr("launcher.executors.slurm.task.run_stage", lambda *_: 75)
    interrupts = Interrupts(patient=True)
    interrupts(signal.SIGUSR2, None)
    assert task._run(rendezvous.Step("1", 0, "0", 0, "trn1"), interrupts) == 1
    assert f"retry SWEEP {key}=MINUTES" in capsys.readouterr().err


def test_nodes_meet_where_the_first_one_says(tmp_path, monkeypatch):
    monkeypatch.setattr(rendezvous, "_scontrol", lambda *words: "trn3\ntrn4\n" if "hostnames" in words else
                        "NodeName=trn3 Arch=x NodeAddr=10.0.0.7 NodeHostName=trn3 ")  # fmt: skip
    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", _unknown_name)
    step = rendezvous.Step("77", 0, "0", 0, "trn[3-4]")
    first = rendezvous.agree(step, tmp_path, None, None)
    assert first[:3] == ["--rdzv-backend=static", "--node-rank=0", "--master-addr=10.0.0.7"]
    second = rendezvous.agree(replace(step, node=1), tmp_path, None, None)
    assert second[1] == "--node-rank=1"
    assert second[2:] == first[2:]
    with monkeypatch.context() as on_the_first:  # it knows itself by a name that means nothing to the second
        on_the_first.setattr(rendezvous.socket, "getaddrinfo", lambda *_: [])
        named = rendezvous.agree(replace(step, step_id="1"), tmp_path, None, None)
    assert named[2] == "--master-addr=trn3"
    assert rendezvous.agree(replace(step, step_id="1", node=1), tmp_path, None, None)[2:] == [first[2], named[3]]
    with pytest.raises(TrntuneError, match="has not written it"):  # another start of the job: the old word is stale
        rendezvous.agree(replace(step, node=1, restarts=1), tmp_path, None, None, seconds=0.3)
    own = rendezvous.agree(step, tmp_path, "10.1.1.1", 4444)
    assert own[2:] == ["--master-addr=10.1.1.1", "--master-port=4444"]


def _unknown_name(*_):
    raise OSError


def test_ports_are_free_and_not_those_of_outgoing_connections():
    ports = {rendezvous.free_port() for _ in range(20)}
    assert len(ports) > 10
    assert all(15000 <= port < 30000 for port in ports)


def test_a_rank_that_was_cut_off_ends_when_the_run_is_taken_over(tmp_path, monkeypatch):
    """A node that Slurm took for dead may be alive: two writers of the same checkpoints would lose both. What it has
    started ends with it, at once: told to leave, it would save."""
    program = (
        "import socket, subprocess; from pathlib import Path; from launcher.run_dir import lock\n"
        "lock.HEARTBEAT_SECONDS = 0.2\n"
        "socket.gethostname = lambda: 'a-node-that-is-gone'\n"
        f"child = subprocess.Popen(['sleep', '{PATIENCE}'], start_new_session=True)\n"
        f"with lock.RunLock(Path({str(tmp_path)!r}), 'job of stage train'): print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**submission_environment(), "SLURM_JOB_ID": "7"}) as cut_off:  # fmt: skip
        assert cut_off.stdout is not None
        child = psutil.Process(int(cut_off.stdout.readline()))
        started = child.create_time()
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        with RunLock(tmp_path, "stage train"):
            assert cut_off.wait(PATIENCE) == 1
        assert cut_off.stderr is not None
        assert "taken over by another start of the job" in cut_off.stderr.read()
        until(lambda: not runs(child.pid, started))
