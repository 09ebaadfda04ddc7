"""What is started again, by whom and how: a directory, a sweep, a tracked run, and never two at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess

import psutil
import pytest

from launcher.paths import ROOT
from tests.conftest import command, environment, launch
from tests.limits import PATIENCE, until
from tests.resuming import (
    LORA,
    SETTINGS,
    at_line,
    committed,
    kill,
    start,
    wait_for_step,
)

pytestmark = pytest.mark.long


def test_a_second_process_on_the_directory_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    directory = tmp_path / "run"
    long = ("training.max_steps=5000", "training.epochs=5000", "training.save_every=null", "training.eval_every=null")
    arguments = command(*SETTINGS, f"hydra.run.dir={directory}", *long)
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL, text=True)
    wait_for_step(directory, 3, process)
    second = start(directory, *long)
    assert second.process.returncode == 1
    host = socket.gethostname()
    holder = f"process {process.pid} on {host} (launch.py)"
    assert second.process.stderr == f"error: run: {holder} works in this directory; wait for its end, or end it\n"
    # The launcher is killed; its stage hears of it, saves and ends, and until then holds the directory.
    stage = json.loads((directory / "run.lock").read_text())[-1]["pid"]
    os.kill(stage, signal.SIGSTOP)
    process.kill()
    process.wait(timeout=PATIENCE)
    third = start(directory, *long)
    assert third.process.returncode == 1
    assert f"process {stage} on {host} (stage train) works in this directory" in third.process.stderr
    os.kill(stage, signal.SIGCONT)
    until(lambda: not psutil.pid_exists(stage) or psutil.Process(stage).status() == psutil.STATUS_ZOMBIE)
    [saved] = committed(directory)
    assert int(saved.removeprefix("step-")) >= 3
    # Nobody is left: the lock of the dead is not in the way.
    again = start(directory, *long, fault=at_line(1, signal.SIGTERM))
    assert again.process.returncode == 75, again.process.stderr
    assert f"going on after step {saved.removeprefix('step-')}" in again.process.stderr


def test_resume_names_a_directory_and_needs_no_other_argument(tmp_path):
    directory = tmp_path / "run"
    assert start(directory, *LORA, fault=at_line(4, signal.SIGTERM)).process.returncode == 75
    again = launch(tmp_path, f"resume={directory}")
    assert again.returncode == 0, again.stderr
    assert "going on after step 4" in again.stderr
    assert json.loads((directory / "stages" / "train.json").read_text())["steps"] == 12
    nothing = launch(tmp_path, "resume=nowhere")
    assert nothing.returncode == 2
    assert nothing.stderr == "error: resume=nowhere: there is no run or sweep in it\n"


def test_a_sweep_that_is_started_again_does_only_what_is_missing(tmp_path):
    sweep = tmp_path / "sweep"
    arguments = ("-m", *SETTINGS, "method=lora,full", f"hydra.sweep.dir={sweep}")
    env = environment() | {
        "TRNTUNE_FAULT": json.dumps(kill("rename", r"method=full/.*step-6\.tmp$")),
        "PYTHONPATH": str(ROOT / "tests" / "faults"),
    }
    first = subprocess.run(command(*arguments), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert first.returncode == 1
    again = launch(tmp_path, f"resume={sweep}")
    assert again.returncode == 0, again.stderr
    assert "0_method=lora: stage train has finished already" in again.stderr
    assert "going on after step 3" in again.stderr
    assert "FPFT against PEFT" in again.stdout
    assert [run["exit_code"] for run in json.loads((sweep / "sweep.json").read_text())["runs"]] == [0, 0]


def test_in_mlflow_a_run_that_goes_on_stays_one_run(tmp_path):
    import mlflow

    directory = tmp_path / "run"
    arguments = (*(each for each in SETTINGS if each != "tracking=none"), f"hydra.run.dir={directory}")
    env = environment() | {
        "TRNTUNE_FAULT": json.dumps(at_line(4, signal.SIGTERM)),
        "PYTHONPATH": str(ROOT / "tests" / "faults"),
    }
    first = subprocess.run(command(*arguments), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert first.returncode == 75, first.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    [experiment] = client.search_experiments(filter_string="name = 'trntune'")
    [stopped] = client.search_runs([experiment.experiment_id])
    assert stopped.info.status == "KILLED"
    again = launch(tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    assert "warning" not in again.stderr
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (stopped.info.run_id, "FINISHED")
    steps = sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "loss"))
    assert steps == list(range(1, 13))
    assert run.data.metrics["attempts"] == 2
