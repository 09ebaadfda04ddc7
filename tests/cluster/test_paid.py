"""What is paid is never left without a word: what stands is looked at first, and what is left is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import boto3
from moto.core.exceptions import JsonRESTError
from moto.fsx.models import FSxBackend
from moto.logs.models import LogsBackend
from moto.s3.exceptions import S3ClientError
from moto.s3.models import S3Backend
from moto.sagemaker.models import SageMakerModelBackend

from cluster import hyperpod, stack
from cluster.aws import Aws
from cluster.compose import compose
from tests.cluster.conftest import CREDENTIALS, environment
from tests.cluster.server import ACCOUNT, SCENES
from tests.limits import PATIENCE

ZONE = "network.availability_zone_id=usw2-az4"
DEPLOY, DELETE = ("deploy", "name=demo", ZONE, "confirm=true"), ("delete", "name=demo", "confirm=true")
TAKE_DOWN = "python -m cluster delete name=demo region=us-west-2 confirm=true"


def make_cluster(account, tags=()):
    """As somebody would who does it by hand."""
    account.sagemaker.create_cluster(
        ClusterName="demo",
        InstanceGroups=[
            {
                "InstanceGroupName": "workers", "InstanceType": "ml.trn1.32xlarge", "InstanceCount": 2,
                "LifeCycleConfig": {"SourceS3Uri": "s3://sagemaker-other/src", "OnCreate": "on_create.sh"},
                "ExecutionRole": f"arn:aws:iam::{ACCOUNT}:role/other", "ThreadsPerCore": 1,
            }
        ],
        Tags=list(tags),
    )  # fmt: skip


OURS = [{"Key": "trntune:cluster", "Value": "demo"}]


def test_beside_a_foreign_cluster_nothing_is_made_and_only_what_is_ours_goes(here, account, capsys):
    make_cluster(account)
    before = account.count()
    assert here(*DEPLOY) == 1
    err = capsys.readouterr().err
    assert "nothing was created:" in err
    assert "there is a cluster demo that is not of python -m cluster" in err
    assert account.count() == before
    assert here("validate", "name=demo", ZONE) == 1
    stack.ensure(Aws("us-west-2"), compose(["name=demo", ZONE, "poll_seconds=0.1"]))  # made before the cluster was
    account.logs.create_log_group(logGroupName="/aws/sagemaker/Clusters/demo/demo")
    assert here(*DELETE) == 0
    assert "left alone: there is a cluster demo" in capsys.readouterr().err
    assert account.count() == {**before, "log groups": 1}
    assert here(*DELETE) == 1
    assert "give another name=...: nothing was deleted" in capsys.readouterr().err
    account.logs.delete_log_group(logGroupName="/aws/sagemaker/Clusters/demo/demo")
    account.sagemaker.delete_cluster(ClusterName="demo")


def test_a_cluster_whose_stack_is_gone_gets_no_new_one(here, account, capsys):
    make_cluster(account, OURS)
    before = account.count()
    assert here(*DEPLOY) == 1
    assert "the cluster demo (InService) is there, but not the stack" in capsys.readouterr().err
    assert account.count() == before
    assert here(*DELETE) == 0


def test_a_bucket_is_ours_by_its_tag_and_not_by_its_name(here, account, capsys):
    name = "sagemaker-demo-012345678901"
    where = {"LocationConstraint": "us-west-2"}
    account.s3.create_bucket(Bucket=name, CreateBucketConfiguration=where)
    account.s3.put_object(Bucket=name, Key="results", Body=b"years")
    assert here(*DELETE) == 0
    assert "nothing to delete" in capsys.readouterr().out
    assert account.bucket() == name
    account.s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": OURS})
    assert here(*DELETE) == 0


def test_a_cluster_of_the_same_name_in_another_region_keeps_its_bucket(here, account, capsys):
    """S3 lists all regions' buckets to each."""
    name, where = "sagemaker-demo-abcdefabcdef", {"LocationConstraint": "eu-central-1"}
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    other = boto3.client("s3", region_name="eu-central-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"], **keys)
    other.create_bucket(Bucket=name, CreateBucketConfiguration=where)
    other.put_bucket_tagging(Bucket=name, Tagging={"TagSet": OURS})
    other.put_object(Bucket=name, Key="src/on_create.sh", Body=b"of the other cluster")
    assert here(*DELETE) == 0
    assert "nothing to delete" in capsys.readouterr().out
    assert [found["Key"] for found in other.list_objects_v2(Bucket=name)["Contents"]] == ["src/on_create.sh"]
    assert here("delete", "name=demo", "region=eu-central-1", "confirm=true") == 0


def test_ctrl_c_lists_what_is_there_and_how_to_go_on(address, here, account, capsys, tmp_path, monkeypatch):
    """And lifecycle scripts of one's own, from a directory, are what is uploaded."""
    (tmp_path / "mine/parts").mkdir(parents=True)
    for name in ("start.sh", "parts/mount.sh", ".notes", "provisioning_parameters.json"):
        (tmp_path / "mine" / name).write_text("mine")
    deploy = (*DEPLOY, f"lifecycle.directory={tmp_path}/mine", "lifecycle.entry=start.sh")
    variables = environment(AWS_ENDPOINT_URL=address, **CREDENTIALS)
    command = [sys.executable, "-m", "cluster", *deploy, "poll_seconds=0.1"]
    monkeypatch.setitem(SCENES, "demo", [("Creating", "")])
    with subprocess.Popen(command, env=variables, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if "cluster demo: Creating" in line:
                process.send_signal(signal.SIGINT)
    monkeypatch.setitem(SCENES, "demo", [("InService", "")])
    text = "".join(said)
    assert process.returncode == 130
    assert "there so far:\n" in text
    for thing in ("cluster demo (Creating)\n", "stack demo (CREATE_COMPLETE)\n", "bucket sagemaker-demo-"):
        assert f"    {thing}" in text
    assert f"what is there is paid until it is taken down: {TAKE_DOWN}\n" in text
    assert text.endswith("interrupted; what AWS has begun goes on: the same command takes it up\n")
    assert "warning: uploaded files: " in text
    assert "mine/provisioning_parameters.json is not uploaded" in text
    assert here(*deploy) == 0
    bucket = account.bucket()
    listed = [found["Key"] for found in account.s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert listed == ["src/parts/mount.sh", "src/provisioning_parameters.json", "src/start.sh"]
    written = account.s3.get_object(Bucket=bucket, Key="src/provisioning_parameters.json")["Body"].read()
    assert json.loads(written)["controller_group"] == "controller-machine"
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(hyperpod, "wait", interrupt)
        assert here(*DELETE) == 130
    err = capsys.readouterr().err
    assert "left, and perhaps paid:\n" in err
    assert "  stack demo (CREATE_COMPLETE)\n" in err
    assert f"  go on: {TAKE_DOWN}\n" in err
    assert here(*DELETE) == 0


def interrupt(*arguments):
    raise KeyboardInterrupt


def refuse(*arguments, **more):
    raise JsonRESTError("ResourceLimitExceeded", "the account-level limit is 0")


def test_a_refusal_after_the_stack_was_made_names_what_ends_the_bill(here, account, capsys, monkeypatch):
    def deny(*arguments, **more):
        raise JsonRESTError("AccessDeniedException", "not you")

    def deny_s3(*arguments, **more):
        raise S3ClientError("AccessDenied", "not you")

    with monkeypatch.context() as patch:
        patch.setattr(SageMakerModelBackend, "create_cluster", refuse)
        assert here(*DEPLOY) == 1
    err = capsys.readouterr().err
    assert "the account-level limit is 0" in err
    assert f"what is there is paid until it is taken down: {TAKE_DOWN}" in err

    # And a delete that AWS stops midway says what is left: what can't be known is no exception.
    vpc = account.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["false"]}])["Vpcs"][0]["VpcId"]
    with monkeypatch.context() as patch:
        patch.setattr(S3Backend, "list_object_versions", deny_s3)
        patch.setattr(LogsBackend, "describe_log_groups", deny)
        assert here(*DELETE) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("error: not permitted") for line in lines)
    assert "left, and perhaps paid:" in lines
    assert "  stack demo (CREATE_COMPLETE)" in lines
    assert f"  network {vpc}" in lines
    assert any(line.startswith("  log groups: not known (not permitted") for line in lines)
    assert lines[-1] == f"put it right, then: {TAKE_DOWN}"
    assert here(*DELETE) == 0


def test_what_is_kept_with_the_file_system_is_its_own(here, account, capsys, monkeypatch):
    """A node's interface in the network isn't: it keeps a later delete from ending."""
    assert here(*DEPLOY) == 0
    (system,) = account.fsx.describe_file_systems()["FileSystems"]
    made = account.ec2.create_network_interface(SubnetId=system["SubnetIds"][0], Description="of a node")
    interface = made["NetworkInterface"]["NetworkInterfaceId"]
    capsys.readouterr()
    assert here(*DELETE, "keep_fsx=true") == 1
    out = capsys.readouterr().out
    assert "left, and perhaps paid" in out
    assert f"interface {interface} (of a node)" in out
    account.ec2.delete_network_interface(NetworkInterfaceId=interface)
    assert here(*DELETE, "keep_fsx=true") == 0
    # A command that is copied from an error must not take it away.
    with monkeypatch.context() as patch:
        patch.setattr(SageMakerModelBackend, "create_cluster", refuse)
        assert here(*DEPLOY) == 1
    assert capsys.readouterr().err.endswith(f"until it is taken down: {TAKE_DOWN} keep_fsx=true\n")
    with monkeypatch.context() as patch:
        patch.setattr(stack, "wait_for", interrupt)
        assert here(*DELETE, "keep_fsx=true") == 130
    assert f"go on: {TAKE_DOWN} keep_fsx=true\n" in capsys.readouterr().err
    assert here(*DELETE, "keep_fsx=true") == 0
    capsys.readouterr()
    assert here("status", "name=demo") == 1
    assert "cost: no instance; NAT gateway, file system" in " ".join(capsys.readouterr().out.split())
    assert here(*DELETE) == 0


def test_status_counts_the_instances_that_there_are(here, account, capsys, monkeypatch):
    def deny(*arguments, **more):
        raise JsonRESTError("AccessDeniedException", "not you")

    monkeypatch.setattr(FSxBackend, "describe_file_systems", deny)
    make_cluster(account)
    price = ["workers.price_usd_per_hour=20", "workers.price_source=page", "workers.price_date=2026-11-01"]
    assert here("status", "name=demo", "workers.count=8", *price) == 0
    assert "cost: 40.00 USD an hour: 2 x ml.trn1.32xlarge at 20.00 USD" in " ".join(capsys.readouterr().out.split())
    assert here("status", "name=demo", "workers.count=8", "format=json") == 0
    stands = json.loads(capsys.readouterr().out)
    assert (stands["cluster"]["usd_per_hour"], stands["file_systems"]) == (None, None)
    monkeypatch.undo()
    account.sagemaker.delete_cluster(ClusterName="demo")


def test_ssh_becomes_awss_command_line(address, account, tmp_path):
    make_cluster(account)
    for name, text in (("aws", "printf '%s\\n' $$ \"$@\"; exit 7"), ("session-manager-plugin", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = environment(AWS_ENDPOINT_URL=address, **CREDENTIALS, PATH=f"{tmp_path}:{os.environ['PATH']}")
    command = [sys.executable, "-m", "cluster", "ssh", "name=demo", "node=workers"]
    with subprocess.Popen(command, env=variables, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=PATIENCE)
    target = "sagemaker-cluster:demo_workers-workers-0"
    assert out.split() == [
        str(process.pid), "ssm", "start-session", "--target", target, "--region", "us-west-2"
    ]  # fmt: skip
    assert process.returncode == 7
    account.sagemaker.delete_cluster(ClusterName="demo")
