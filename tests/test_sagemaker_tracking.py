"""tracking=sagemaker: the real plugin signs every request; a real MLflow server stands behind a recording proxy.

SageMaker's own endpoint is replaced through the plugin's variable for it. What can't be seen here is AWS checking the
signature, and artifacts in S3: the server's artifacts are files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import TINY, command, environment
from tests.limits import PATIENCE
from tests.test_runs_in_mlflow import ALONE, call, free_port

ARN = "arn:aws:sagemaker:us-west-2:123456789012:mlflow-tracking-server/mine"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on loopback."""
    port = free_port()
    arguments = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--port", str(port), "--workers", "1"]
    artifacts = ["--no-serve-artifacts", "--default-artifact-root", (tmp_path / "artifacts").as_uri()]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *arguments, *artifacts],
            env={**os.environ, **ALONE},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            call(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", {"max_results": 1})
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=PATIENCE)


@pytest.fixture
def endpoint(server: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A proxy in front of the server, and the headers of what it was asked."""
    seen: list[dict[str, str]] = []

    class Proxy(BaseHTTPRequestHandler):
        def forward(self) -> None:
            seen.append(dict(self.headers))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            request = urllib.request.Request(server + self.path, body, method=self.command)
            request.add_header("Content-Type", self.headers.get("Content-Type") or "application/json")
            try:
                answer = urllib.request.urlopen(request, timeout=PATIENCE)
            except urllib.error.HTTPError as error:
                answer = error
            content = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = forward

        def log_message(self, *args: object) -> None: ...

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_port}", seen
    proxy.shutdown()
    proxy.server_close()


def test_a_sweep_is_tracked_through_signed_requests(tmp_path, server, endpoint):
    address, seen = endpoint
    arguments = ("-m", *TINY, "training.max_steps=3", "training.eval_every=null", "tracking=sagemaker", "seed=0,1")
    process = subprocess.run(
        command(*arguments, f"tracking.uri={ARN}", "tracking.system_metrics=false", f"hydra.sweep.dir={tmp_path}/s"),
        cwd=tmp_path,
        env={
            **environment(),
            "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT": address,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert process.returncode == 0, process.stderr
    assert "warning" not in process.stderr
    for headers in seen:
        lower = {name.lower(): value for name, value in headers.items()}
        assert "/us-west-2/sagemaker-mlflow/aws4_request" in lower["authorization"]
        assert lower["x-mlflow-sm-tracking-server-arn"] == ARN
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("trntune")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    kinds = sorted(run.data.tags["trntune.kind"] for run in runs)
    assert kinds == ["run", "run", "sweep"]
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all(run.data.metrics["trainable_params"] > 0 for run in runs if run.data.tags["trntune.kind"] == "run")
