"""What a run and a sweep leave on disk, and their exit codes. The stages and reports are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import yaml

from launcher import app
from launcher.io import write_json
from launcher.paths import ROOT
from launcher.run import run_single
from launcher.run_dir.layout import RunDir
from launcher.sweep.run_sweep import run_sweep
from tests.launcher.conftest import composition
from tests.limits import PATIENCE


@pytest.fixture
def reports(monkeypatch):
    """A stand-in for the processes of postprocess.summary and postprocess.compare that notes what they were asked."""
    asked: list[object] = []

    def show(module, directory, missing):
        asked.append(directory)
        return 0

    for place in ("launcher.run", "launcher.sweep.run_sweep"):
        monkeypatch.setattr(f"{place}.show", show)
    return asked


def trains(*codes: int):
    """A runner whose n-th run exits with the n-th code, and leaves a training result unless that is 1."""
    left = list(codes)

    def run_stages(config, run_dir):
        code = left.pop(0)
        if code != 1:
            write_json(run_dir.stage_file("train"), {"status": "interrupted" if code == 130 else "finished"})
        return code

    return run_stages


def test_a_run_leaves_its_configuration_and_who_ran_what(cwd, reports):
    found = composition("model=tiny_llama", "seed=3")
    assert run_single(found.runs[0], trains(0)) == 0
    (path,) = reports
    run_dir = RunDir(path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert run_dir.load_config() == found.runs[0].config
    assert "${" not in run_dir.config_file.read_text()
    assert yaml.safe_load((run_dir.hydra / "overrides.yaml").read_text()) == ["model=tiny_llama", "seed=3"]
    assert yaml.safe_load((run_dir.hydra / "hydra.yaml").read_text())["hydra"]["runtime"]["choices"]["method"] == "lora"
    job = json.loads(run_dir.job.read_text())
    assert job["overrides"] == ["model=tiny_llama", "seed=3"]
    assert job["packages"]["torch"]
    assert job["started_at"].endswith("+00:00")


@pytest.mark.parametrize("file", ["plan.json", "config.yaml", "overrides.yaml", "hydra.yaml", "job.json"])
def test_a_launcher_that_is_killed_as_it_writes_down_a_run_is_not_in_its_way(file, cwd, reports):
    fault = {"op": "rename", "path": rf"/\.{file}\.", "count": 1, "signal": signal.SIGKILL}
    env = {**os.environ, "TRNTUNE_FAULT": json.dumps(fault), "PYTHONPATH": str(ROOT / "tests" / "faults")}
    arguments = ("model=tiny_llama", "hydra.run.dir=mine")
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    killed = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = composition(*arguments)
    app.check(again)
    assert run_single(again.runs[0], trains(0)) == 0
    run_dir = RunDir(cwd / "mine")
    assert run_dir.load_config() == again.runs[0].config
    assert yaml.safe_load((run_dir.hydra / "overrides.yaml").read_text()) == ["model=tiny_llama"]
    assert run_dir.job.exists()
    assert run_dir.plan.exists()


@pytest.mark.parametrize(("code", "reported"), [(0, True), (1, False), (3, False), (130, True)])
def test_a_runs_exit_code_is_the_commands_and_only_a_trained_run_is_summed_up(code, reported, cwd, reports):
    assert run_single(composition().runs[0], trains(code)) == code
    assert bool(reports) is reported


def test_a_report_that_could_not_be_shown_is_a_failure_of_the_command(cwd, monkeypatch):
    for place in ("launcher.run", "launcher.sweep.run_sweep"):
        monkeypatch.setattr(f"{place}.show", lambda module, directory, missing: 1)
    assert run_single(composition().runs[0], trains(0)) == 1
    assert run_sweep(composition("-m", "seed=1,2", "tracking=none", "hydra.sweep.dir=sweep"), [], trains(0, 0)) == 1


def test_a_failed_run_does_not_stop_the_others_and_is_named(cwd, reports, capsys):
    found = composition("-m", "method=lora,full", "tracking=none", "hydra.sweep.dir=sweep")
    assert run_sweep(found, [], trains(1, 0)) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "[1/2] method=lora -> sweep/0_method=lora",
        "[2/2] method=full -> sweep/1_method=full",
    ]
    assert "1 of 2 runs failed: 0_method=lora" in captured.err
    assert reports == [cwd / "sweep"]
    runs = json.loads((cwd / "sweep" / "sweep.json").read_text())["runs"]
    assert runs == [
        {"directory": "0_method=lora", "overrides": ["method=lora", "tracking=none"], "exit_code": 1},
        {"directory": "1_method=full", "overrides": ["method=full", "tracking=none"], "exit_code": 0},
    ]


def test_an_interrupted_run_ends_the_sweep(cwd, reports, capsys):
    found = composition("-m", "seed=0,1,2", "tracking=none", "hydra.sweep.dir=sweep")
    assert run_sweep(found, [], trains(0, 130)) == 130
    assert sorted(path.name for path in (cwd / "sweep").glob("*_*")) == ["0_seed=0", "1_seed=1"]
    assert "2 of 3 runs" in capsys.readouterr().err


def test_a_sweep_is_checked_whole_before_anything_is_made(cwd, capsys, reports):
    assert app.main(["-m", "training.global_batch_size=2,3", "training.micro_batch_size=2"]) == 2
    assert list(cwd.iterdir()) == []


def test_several_runs_cannot_share_a_directory(cwd, capsys):
    assert app.main(["-m", "seed=0,1", "hydra.sweep.subdir=same"]) == 2
    assert "hydra.job.num" in capsys.readouterr().err


def test_an_unwritable_place_is_told_in_one_line(cwd, capsys):
    assert app.main(["hydra.run.dir=/proc/nowhere/run"]) in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1
