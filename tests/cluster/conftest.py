"""Fixtures: the command as a process, AWS on the loopback interface, lifecycle scripts in a directory of their own."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.compose import compose
from cluster.documents import parameters, placeholders
from cluster.files import scripts_directory
from launcher.paths import ROOT
from tests.limits import PATIENCE

Command = Callable[..., "subprocess.CompletedProcess[str]"]
# Of a made-up account: moto takes any.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


def environment(**more: str) -> dict[str, str]:
    """Without whatever AWS settings the machine has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    nowhere = {"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}
    return {**kept, **nowhere, "AWS_EC2_METADATA_DISABLED": "true", "PYTHONPATH": str(ROOT), **more}


@pytest.fixture
def offline(tmp_path: Path) -> Command:
    """`python -m cluster` without credentials."""

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cluster", *arguments]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(**more),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """AWS on the loopback interface, empty."""
    from moto.server import ThreadedMotoServer

    import tests.cluster.server  # noqa: F401 (what moto lacks)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(offline: Command, address: str) -> Command:
    """`python -m cluster` with credentials for the AWS of ``address``."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        quick = () if "--help" in arguments else ("poll_seconds=0.1",)
        return offline(*arguments, *quick, AWS_ENDPOINT_URL=address, **CREDENTIALS)

    return run


RESOURCES: dict[str, Any] = {
    "ClusterConfig": {"ClusterName": "demo"},
    "InstanceGroups": [
        {
            "Name": "controller-machine",
            "InstanceType": "ml.c5.4xlarge",
            "Instances": [{"InstanceName": "controller-machine-1", "CustomerIpAddress": "127.0.0.1"}],
        },
        {
            "Name": "worker-group-1",
            "InstanceType": "ml.trn1.32xlarge",
            "Instances": [
                {"InstanceName": f"worker-group-1-{number}", "CustomerIpAddress": f"127.0.0.{number + 1}"}
                for number in (1, 2)
            ],
        },
    ],
}


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """The lifecycle scripts and documents as a node gets them, with HyperPod's list of instances."""
    config = compose(["name=demo"])
    directory = tmp_path / "src"
    shutil.copytree(scripts_directory(config), directory, ignore=shutil.ignore_patterns("__pycache__"))
    for path in directory.iterdir():  # S3 keeps no permissions
        path.chmod(0o644)
    document = parameters(config, placeholders(config))
    (directory / "provisioning_parameters.json").write_text(json.dumps(document))
    (directory / "resource_config.json").write_text(json.dumps(RESOURCES))
    return directory
