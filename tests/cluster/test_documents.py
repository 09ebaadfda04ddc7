"""The request and provisioning_parameters.json: what they say, and every refusal of wrong ones."""

from __future__ import annotations

import json

import pytest

from cluster import agreement, model
from cluster.compose import compose
from cluster.documents import parameters, placeholders, request
from cluster.findings import PROBLEM, WARNING


def documents(*overrides: str):
    config = compose(["name=demo", *overrides])
    wanted = placeholders(config)
    return request(config, wanted), parameters(config, wanted)


def lifecycle(document):
    return document["InstanceGroups"][0]["LifeCycleConfig"]


def problems(findings):
    return [finding.detail for finding in findings if finding.state == PROBLEM]


@pytest.mark.parametrize("overrides", [[], ["mode=api"], ["login.count=2", "mode=api"], ["workers=trn2_48xlarge"]])
def test_what_is_made_is_what_aws_and_each_other_want(overrides):
    document, written = documents(*overrides)
    assert problems(model.check_request(document)) == []
    files = {"src/on_create.sh"} if written else None
    assert problems(agreement.check(document, written, files)) == []


def test_api_mode_says_it_in_the_request():
    document, written = documents("mode=api", "login.count=1", "workers.partition=dev", "storage.mount_path=/data")
    assert written is None
    groups = {group["InstanceGroupName"]: group for group in document["InstanceGroups"]}
    assert groups["controller-machine"]["SlurmConfig"] == {"NodeType": "Controller"}
    assert groups["login-group"]["SlurmConfig"] == {"NodeType": "Login"}
    assert groups["worker-group-1"]["SlurmConfig"] == {"NodeType": "Compute", "PartitionNames": ["dev"]}
    assert not [group for group in groups.values() if "LifeCycleConfig" in group]
    assert groups["worker-group-1"]["InstanceStorageConfigs"][1]["FsxLustreConfig"]["MountPath"] == "/data"
    assert document["Orchestrator"] == {"Slurm": {"SlurmConfigStrategy": "Managed"}}


def test_scripts_mode_names_the_same_groups_in_both():
    document, written = documents("workers.name=w", "controller.name=c", "login.count=1", "login.name=l")
    assert [group["InstanceGroupName"] for group in document["InstanceGroups"]] == ["c", "w", "l"]
    assert (written["controller_group"], written["login_group"]) == ("c", "l")
    assert written["worker_groups"] == [{"instance_group_name": "w", "partition_name": "trn1"}]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda d: d["InstanceGroups"][0].update(InstanceCount=7000),
            "InstanceGroups[0].InstanceCount: 7000, at most 6758",
        ),
        (lambda d: d.update(ClusterName="a_b"), "ClusterName=a_b: does not match"),
        (lambda d: d.update(ClusterName="a" * 64), "ClusterName: 64 characters, at most 63"),
        (
            lambda d: d["VpcConfig"].update(SecurityGroupIds=["sg-1"] * 6),
            "VpcConfig.SecurityGroupIds: 6 entries, at most 5",
        ),
        (lambda d: d["InstanceGroups"][1].pop("ExecutionRole"), 'parameter in InstanceGroups[1]: "ExecutionRole"'),
        (
            lambda d: d["InstanceGroups"][1].update(ThreadsPerCore="two"),
            "Invalid type for parameter InstanceGroups[1].ThreadsPerCore",
        ),
        (lambda d: d.update(Nodes=1), 'Unknown parameter in input: "Nodes"'),
        (
            lambda d: d["InstanceGroups"][0].update(InstanceCount=-1),
            "InstanceGroups[0].InstanceCount, value: -1, valid min value: 0",
        ),
    ],
)
def test_the_model_refuses(change, says):
    document, _ = documents()
    change(document)
    assert [detail for detail in problems(model.check_request(document)) if says in detail]


def test_an_instance_type_that_botocore_does_not_know_is_a_warning():
    document, _ = documents("workers.instance_type=ml.trn9.48xlarge")
    (finding,) = model.check_request(document)
    assert finding.state == WARNING
    assert "InstanceGroups[1].InstanceType=ml.trn9.48xlarge" in finding.detail


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda d, p: p.update(controller_group="head"),
            "controller_group is head, but the request has no such instance group",
        ),
        (
            lambda d, p: p["worker_groups"][0].update(instance_group_name="x"),
            "instance group worker-group-1 has no task",
        ),
        (lambda d, p: p.pop("controller_group"), "no controller_group"),
        (lambda d, p: p.update(workload_manager="k8s"), "workload_manager is k8s, must be slurm"),
        (
            lambda d, p: d["InstanceGroups"].append(dict(d["InstanceGroups"][0])),
            "several instance groups controller-machine",
        ),
        (
            lambda d, p: d["VpcConfig"].update(Subnets=["subnet-1", "subnet-2"]),
            "2 subnets (subnet-1, subnet-2): EFA works inside one",
        ),
        (lambda d, p: d["InstanceGroups"][1].update(OverrideVpcConfig={"Subnets": ["subnet-9"]}), "2 subnets"),
        (
            lambda d, p: lifecycle(d).update(SourceS3Uri="s3://mine/src"),
            "SourceS3Uri=s3://mine/src: must begin with s3://sagemaker-",
        ),
        (lambda d, p: lifecycle(d).update(OnCreate="start.sh"), "OnCreate=start.sh: no such file"),
    ],
)
def test_what_does_not_agree_is_found(change, says):
    document, written = documents()
    change(document, written)
    assert [detail for detail in problems(agreement.check(document, written, {"src/on_create.sh"})) if says in detail]


def test_hand_written_documents_are_validated_with_every_problem_and_exit_code_1(offline, tmp_path):
    document, written = documents()
    document["VpcConfig"]["Subnets"].append("subnet-2")
    document["InstanceGroups"][0]["InstanceCount"] = 7000
    written["worker_groups"][0]["instance_group_name"] = "workers"
    (tmp_path / "create_cluster.json").write_text(json.dumps(document))
    (tmp_path / "provisioning_parameters.json").write_text(json.dumps(written))
    done = offline("validate", "documents=.")
    assert done.returncode == 1
    words = " ".join(done.stdout.split())
    assert "4 problems" in words
    for said in ("7000, at most 6758", "worker_groups is workers", "has no task", "2 subnets"):
        assert said in words
    (tmp_path / "create_cluster.json").write_text("{")
    done = offline("validate", "documents=.")
    assert (done.returncode, done.stdout) == (2, "")
    assert "create_cluster.json: not JSON" in done.stderr
