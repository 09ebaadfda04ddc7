"""Whole runs with tracking: a server that is down, and what MLflow shows of a run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.limits import PATIENCE

pytestmark = pytest.mark.long


# MLflow's server without its runner of jobs, whose seven processes take longer to start than itself.
ALONE = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_tracking_server_that_is_down_costs_a_warning_not_the_run(run_tiny):
    run = run_tiny("run", f"tracking.uri=http://127.0.0.1:{free_port()}")
    assert run.process.returncode == 0, run.process.stderr
    [warning] = [line for line in run.process.stderr.splitlines() if line.startswith("warning: MLflow")]
    assert "the run goes on" in warning
    assert len(run.metrics("train")) == 6
    assert run.result["mlflow"]["failure"]
    assert "MLflow         not complete" in run.process.stdout


@contextmanager
def mlflow_ui(directory: Path) -> Iterator[str]:
    """The command that a run prints at its end, serving the database that runs in ``directory`` have written to."""
    port = free_port()
    arguments = ["ui", "--backend-store-uri", "sqlite:///outputs/mlflow.db", "--port", str(port), "--workers", "1"]
    with (directory / "ui.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            cwd=directory,
            env={**os.environ, **ALONE},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=PATIENCE)


def call(url: str, body: dict | None = None) -> dict:
    """One request of MLflow's REST interface, tried until the server is up, two minutes at most."""
    data = None if body is None else json.dumps(body).encode()
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_mlflow_shows_the_run_with_its_parameters_metrics_and_artifacts(run_tiny, tmp_path):
    run = run_tiny("named")
    assert run.process.returncode == 0, run.process.stderr
    with mlflow_ui(tmp_path) as address:
        compare_with_mlflow(run, f"{address}/api/2.0/mlflow")


def compare_with_mlflow(run: Run, api: str) -> None:
    found = call(f"{api}/experiments/get-by-name?experiment_name=trntune")["experiment"]["experiment_id"]
    [shown] = call(f"{api}/runs/search", {"experiment_ids": [found]})["runs"]
    assert shown["info"]["status"] == "FINISHED"
    assert shown["info"]["run_name"] == "named"
    metrics = {metric["key"]: metric["value"] for metric in shown["data"]["metrics"]}
    for name in ("samples_per_second", "trainable_params", "wall_seconds", "eval_loss_after", "tokens_per_second"):
        assert metrics[name] == pytest.approx(run.result[name], rel=0.2), name
    assert any(name.startswith("system/") for name in metrics)
    params = {param["key"]: param["value"] for param in shown["data"]["params"]}
    assert params["lora.r"] == "16"
    files = call(f"{api}/artifacts/list?run_id={shown['info']['run_id']}")["files"]
    assert {"config.yaml", "metrics.jsonl", "samples.jsonl", "samples.json"} <= {file["path"] for file in files}
    # Without max_results older servers of MLflow (3.8) answer with none.
    history = call(f"{api}/metrics/get-history?run_id={shown['info']['run_id']}&metric_key=loss&max_results=99")[
        "metrics"
    ]
    assert [point["step"] for point in history] == [1, 2, 3, 4, 5, 6]
