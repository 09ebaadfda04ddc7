"""Which node, which command, and what is said when a program is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import ssh
from cluster.compose import compose
from cluster.hyperpod import Cluster, Node
from launcher.errors import TrntuneError, UsageError

CLUSTER = Cluster({"ClusterName": "demo", "ClusterArn": "arn:aws:sagemaker:us-west-2:1:cluster/abc123def456"})
NODES = [
    Node("controller-machine", "i-01", "ml.c5.4xlarge", "Running", "", ""),
    Node("worker-group-1", "i-02", "ml.trn1.32xlarge", "Running", "", ""),
    Node("worker-group-1", "i-03", "ml.trn1.32xlarge", "Running", "", ""),
]
LOGIN = Node("login-group", "i-09", "ml.m5.4xlarge", "Running", "", "")


@pytest.mark.parametrize(
    ("nodes", "overrides", "chosen"),
    [
        (NODES, [], "i-01"),
        ([*NODES, LOGIN], ["login.count=1"], "i-09"),
        (NODES, ["node=worker-group-1"], "i-02"),
        (NODES, ["node=i-03"], "i-03"),
    ],
)
def test_the_node(nodes, overrides, chosen):
    assert ssh.choose(nodes, compose(overrides)).id == chosen


def test_the_target_is_cluster_group_and_instance():
    command = ssh.session_command(CLUSTER, NODES[1], "us-west-2")
    assert command[command.index("--target") + 1] == "sagemaker-cluster:abc123def456_worker-group-1-i-02"


def test_a_node_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(
        UsageError, match=r"there are controller-machine, worker-group-1, i-01.*did you mean worker-group-1"
    ):
        ssh.choose(NODES, compose(["node=worker-group-2"]))
    with pytest.raises(TrntuneError, match="has no node yet"):
        ssh.choose([], compose([]))


@pytest.mark.parametrize(("there", "missing"), [([], "aws"), (["aws"], "session-manager-plugin")])
def test_a_missing_program_is_named(tmp_path: Path, monkeypatch, there, missing):
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TrntuneError, match=f"{missing} is not installed.*show=true prints the command"):
        ssh.check_programs()
    assert os.environ["PATH"] == str(tmp_path)


def test_a_program_that_cannot_be_started_is_one_line(tmp_path: Path, monkeypatch):
    (tmp_path / "aws").write_bytes(b"of another machine")
    (tmp_path / "aws").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TrntuneError, match=r"/aws can't be started: Exec format error"):
        ssh.become(["aws", "ssm"])


def test_a_node_that_runs_comes_before_one_that_has_failed():
    failed = Node("worker-group-1", "i-00", "ml.trn1.32xlarge", "Failure", "", "")
    assert ssh.choose([failed, *NODES], compose(["node=worker-group-1"])).id == "i-02"
    assert ssh.choose([failed, *NODES], compose(["node=i-00"])).id == "i-00"
