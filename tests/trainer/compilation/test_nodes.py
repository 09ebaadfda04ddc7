"""Stage compile as a cluster starts it: on two nodes, one process on each, whose trial runs meet; and told to leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from launcher.config.schema import Config, NeuronConfig
from launcher.errors import SUSPENDED
from launcher.executors.slurm.rendezvous import free_port
from launcher.io import write_json
from launcher.jobs.helper_process import python_module
from launcher.jobs.variables import variables
from launcher.neuron.variables import graph_directory
from launcher.paths import ROOT
from launcher.run_dir.layout import RunDir
from launcher.run_dir.provenance import write_records
from tests.launcher.conftest import single
from tests.limits import PATIENCE, until
from tests.trainer.compilation.test_stage import IMITATION, TINY
from trainer.fetch.sources import fetch_dataset, fetch_model

TASK = """
import sys
from launcher.executors.slurm.task import StageTask, frozen
StageTask("compile", sys.argv[1], sys.argv[2], 2, 1, frozen(), "127.0.0.1", int(sys.argv[3]))()
"""


def prepared(tmp_path: Path, *arguments: str) -> tuple[RunDir, Config, dict[str, str]]:
    """A run that has been fetched, and the environment of its stage compile."""
    composed = single(*TINY, "training.max_steps=1", *arguments)
    config = composed.config
    config.accelerator.neuron = NeuronConfig(cache_dir=str(tmp_path / "graphs"))
    run_dir = RunDir(tmp_path / "run")
    write_records(run_dir, config, composed.hydra, composed.overrides)
    places = {"model_dir": str(fetch_model(config.model)), "dataset_path": str(fetch_dataset(config.dataset))}
    write_json(run_dir.stage_file("fetch"), {**places, "seconds": 0})
    path = f"{IMITATION / 'bin'}:{os.environ['PATH']}"
    env = {**os.environ, **variables("compile", config), "PATH": path, "PYTHONPATH": f"{ROOT}:{IMITATION}"}
    return run_dir, config, env


def test_told_to_leave_it_ends_the_tool_and_all_below_it(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_dir, _, env = prepared(tmp_path)
    sign = tmp_path / "sleeper"
    command = python_module("launcher.jobs.run_stage", "compile", str(run_dir.path))
    env["IMITATED_HANG"] = str(sign)
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as stage:
        until(lambda: stage.poll() is not None or (sign.is_file() and sign.read_text()))
        assert stage.poll() is None
        sleeper = psutil.Process(int(sign.read_text()))
        stage.send_signal(signal.SIGTERM)
        error = stage.communicate(timeout=PATIENCE)[1]
    assert stage.returncode == SUSPENDED
    assert "graphs that are compiled stay in the cache; start it again" in error
    assert not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE
    assert not (run_dir.path / "trial").exists()
    assert not run_dir.stage_file("compile").exists()


def test_every_node_traces_its_part_and_the_first_one_writes(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_dir, config, shared = prepared(tmp_path, "parallelism=ddp2", "cluster.processes_per_node=1")
    run_dir.logs.mkdir()
    port = free_port()
    tasks = []
    for node in (0, 1):
        slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NODEID": str(node), "SLURM_STEP_NODELIST": "n[0-1]"}
        env = {**shared, **slurm}
        command = [sys.executable, "-c", TASK, str(run_dir.path), str(tmp_path), str(port)]
        tasks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    output = [task.communicate(timeout=PATIENCE)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], output
    result = json.loads(run_dir.stage_file("compile").read_text())
    assert result["compiled"] == len(result["graphs"]) >= 2
    assert len(list(graph_directory(config).glob("*/MODULE_*/model.done"))) == len(result["graphs"])
    assert all("Extracting graphs (" in text and "Total graphs: " in text for text in output)
    assert "graphs, " in output[0]
    assert "compiled now" not in output[1]
    assert not (run_dir.path / "trial").exists()
