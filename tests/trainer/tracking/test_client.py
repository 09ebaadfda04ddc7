"""MLflow's database is made once, whoever comes at the same time."""

from __future__ import annotations

import json
import subprocess

from launcher.jobs.helper_process import python_module
from tests.limits import PATIENCE
from trainer.tracking.run import flatten


def test_several_that_begin_at_once_share_a_new_database(tmp_path):
    place = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "e", "name": "n", "params": {}}
    command = python_module("trainer.tracking.sweep", json.dumps({"action": "start", **place}))
    started = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ends = [process.communicate(timeout=PATIENCE) for process in started]
    assert [stderr for _, stderr in ends if "warning" in stderr] == []
    ids = {json.loads(stdout.splitlines()[-1])["run_id"] for stdout, _ in ends}
    assert len(ids) == 4


def test_patterns_whose_names_mlflow_refuses_are_one_parameter():
    lora = {"r": 4, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers\\.1\\..*": 2}}
    assert flatten({"lora": lora}) == {
        "lora.r": 4,
        "lora.rank_pattern.q_proj": 8,
        "lora.alpha_pattern": {"layers\\.1\\..*": 2},
    }
