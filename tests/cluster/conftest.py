"""Fixtures: the command as a process, AWS on the loopback interface, lifecycle scripts in a directory of their own."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from cluster.__main__ import main
from cluster.compose import compose
from cluster.documents import parameters, placeholders
from cluster.files import scripts_directory
from launcher.paths import ROOT
from tests.limits import PATIENCE

Command = Callable[..., "subprocess.CompletedProcess[str]"]
# Of a made-up account: moto takes any.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
REGION = "us-west-2"


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


@functools.cache
def _client(address: str, service: str) -> Any:
    """Of boto3. Making one takes longer than asking it, so it is made once."""
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.Session(region_name=REGION, **keys).client(service, endpoint_url=address)


class Account:
    """What is in the account, asked by boto3 and not by the project's own code."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __getattr__(self, service: str) -> Any:
        return _client(self._address, service)

    def count(self) -> dict[str, int]:
        """Of everything that a cluster may leave behind, and pay for."""
        ec2 = self.ec2
        default = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
        found = {
            "clusters": self.sagemaker.list_clusters()["ClusterSummaries"],
            "stacks": self.cloudformation.describe_stacks()["Stacks"],
            "buckets": self.s3.list_buckets()["Buckets"],
            "file systems": self.fsx.describe_file_systems()["FileSystems"],
            "log groups": self.logs.describe_log_groups()["logGroups"],
            "roles": self.iam.list_roles()["Roles"],
            "VPCs": ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["false"]}])["Vpcs"],
            "subnets": [s for s in ec2.describe_subnets()["Subnets"] if s["VpcId"] != default],
            "security groups": [
                g for g in ec2.describe_security_groups()["SecurityGroups"] if g["GroupName"] != "default"
            ],
            "NAT gateways": ec2.describe_nat_gateways()["NatGateways"],
            "addresses": ec2.describe_addresses()["Addresses"],
            "internet gateways": ec2.describe_internet_gateways()["InternetGateways"],
            "VPC endpoints": ec2.describe_vpc_endpoints()["VpcEndpoints"],
        }
        return {kind: len(things) for kind, things in found.items()}

    def bucket(self) -> str:
        """The only one."""
        (bucket,) = self.s3.list_buckets()["Buckets"]
        return str(bucket["Name"])


@pytest.fixture
def account(address: str) -> Iterator[Account]:
    """Empty before the test, and after it."""
    found = Account(address)
    assert not any(found.count().values())
    yield found
    left = {kind: number for kind, number in found.count().items() if number}
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST")).close()
    assert left == {}


@pytest.fixture
def here(address: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`python -m cluster` for the AWS of ``address`` in this process: where a test changes what that AWS does."""
    for name, value in environment(AWS_ENDPOINT_URL=address, **CREDENTIALS).items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    return lambda *arguments: main([*arguments, "poll_seconds=0.1"])


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
