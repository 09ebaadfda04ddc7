"""A cluster's whole life by real commands, against AWS's control plane as moto's server plays it on this machine."""

from __future__ import annotations

import json
import time

from cluster.files import template
from tests.cluster.server import ACCOUNT, SCENES

ZONE = "network.availability_zone_id=usw2-az4"


def test_deploy_twice_look_at_it_and_delete_it_twice(aws, account):
    done = aws("validate", "name=demo", "workers.count=8")
    assert done.returncode == 1
    words = " ".join(done.stdout.split())
    assert "offered in usw2-az1, usw2-az4" in words
    assert "8 x ml.trn1.32xlarge, but the quota" in words
    assert "after deploy" in words
    refused = aws("deploy", "name=demo", "network.availability_zone_id=usw2-az2", "confirm=true")
    assert refused.returncode == 1
    assert "EC2 offers trn1.32xlarge in usw2-az1, usw2-az4" in refused.stderr
    assert not any(account.count().values())
    done = aws("deploy", "name=demo", ZONE, "confirm=true")
    assert done.returncode == 0, done.stderr
    assert "cluster demo is InService" in done.stdout
    bucket = account.bucket()
    assert bucket.startswith("sagemaker-demo-")
    listed = {entry["Key"] for entry in account.s3.list_objects_v2(Bucket=bucket)["Contents"]}
    assert {"src/on_create.sh", "src/provisioning_parameters.json", "src/trntune.env"} < listed
    written = json.loads(account.s3.get_object(Bucket=bucket, Key="src/provisioning_parameters.json")["Body"].read())
    (system,) = account.fsx.describe_file_systems()["FileSystems"]
    assert (written["fsx_dns_name"], written["fsx_mountname"]) == (
        system["DNSName"],
        system["LustreConfiguration"]["MountName"],
    )
    cluster = account.sagemaker.describe_cluster(ClusterName="demo")
    assert {group["LifeCycleConfig"]["SourceS3Uri"] for group in cluster["InstanceGroups"]} == {f"s3://{bucket}/src"}
    before = account.count()

    again = aws("deploy", "name=demo", ZONE, "confirm=true")
    assert again.returncode == 0, again.stderr
    assert "is there already" in again.stderr
    assert "files are there" in again.stderr
    assert account.count() == before
    assert len(account.s3.list_object_versions(Bucket=bucket)["Versions"]) == len(listed)

    done = aws("validate", "name=demo", ZONE)
    assert done.returncode == 0, done.stdout
    assert "after deploy" not in done.stdout
    done = aws("status", "name=demo", "format=json")
    assert done.returncode == 0, done.stderr
    stands = json.loads(done.stdout)
    assert stands["cluster"]["status"] == "InService"
    assert [node["group"] for node in stands["cluster"]["nodes"]] == ["controller-machine", "worker-group-1"]
    assert [found["id"] for found in stands["file_systems"]] == [system["FileSystemId"]]
    done = aws("ssh", "name=demo", "show=true")
    target = "sagemaker-cluster:demo_controller-machine-controller-machine-0"
    assert done.stdout == f"aws ssm start-session --target {target} --region us-west-2\n"

    account.logs.create_log_group(logGroupName="/aws/sagemaker/Clusters/demo/abc")
    done = aws("delete", "name=demo", "confirm=true")
    assert done.returncode == 0, done.stderr
    assert "all is deleted, nothing is left" in done.stdout
    assert not any(account.count().values())
    again = aws("delete", "name=demo", "confirm=true")
    assert again.returncode == 0, again.stderr
    assert "nothing to delete" in again.stdout
    assert aws("status", "name=demo").returncode == 1


def test_a_cluster_that_differs_is_shown_and_left_alone(aws, account):
    assert aws("deploy", "name=demo", ZONE, "confirm=true").returncode == 0
    before = account.sagemaker.describe_cluster(ClusterName="demo")
    done = aws("deploy", "name=demo", ZONE, "workers.count=3", "workers.partition=dev", "confirm=true")
    assert done.returncode == 1
    assert "worker-group-1.InstanceCount: 1 there, 3 in the configuration" in done.stderr
    assert '"partition_name":"trn1"' in done.stderr
    done = aws("deploy", "name=demo", ZONE, "storage.capacity_gib=2400", "confirm=true")
    assert done.returncode == 1
    assert "FsxCapacityGib: 1200 there, 2400 in the configuration" in done.stderr
    assert account.sagemaker.describe_cluster(ClusterName="demo")["InstanceGroups"] == before["InstanceGroups"]
    assert aws("delete", "name=demo", "confirm=true").returncode == 0


def test_drift_is_found_after_deploy(aws, account):
    """Somebody opens the security group, and changes the mount name in the bucket."""
    assert aws("deploy", "name=demo", ZONE, "confirm=true").returncode == 0
    cluster = account.sagemaker.describe_cluster(ClusterName="demo")
    group, bucket = cluster["VpcConfig"]["SecurityGroupIds"][0], account.bucket()
    account.ec2.authorize_security_group_ingress(
        GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"
    )
    key = "src/provisioning_parameters.json"
    document = json.loads(account.s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    account.s3.put_object(Bucket=bucket, Key=key, Body=json.dumps({**document, "fsx_mountname": "other"}))
    done = aws("validate", "name=demo", ZONE, "format=json")
    assert done.returncode == 1
    details = [found["detail"] for found in json.loads(done.stdout) if found["state"] == "problem"]
    assert f"{group}: lets others in: 0.0.0.0/0" in details
    assert "mount name in the bucket's provisioning_parameters.json is other, FSx says wxyzabcd" in details
    done = aws("deploy", "name=demo", ZONE, "confirm=true")
    assert done.returncode == 1
    assert "lets others in" in done.stderr
    assert aws("delete", "name=demo", "confirm=true").returncode == 0


def test_a_cluster_that_fails_is_explained_and_taken_down(aws, account):
    SCENES["bad"] = [("Creating", ""), ("Creating", ""), ("Failed", "Lifecycle scripts did not run successfully.")]
    try:
        group, stream = "/aws/sagemaker/Clusters/bad/bad", "LifecycleConfig/worker-group-1/i-0123"
        account.logs.create_log_group(logGroupName=group)
        account.logs.create_log_stream(logGroupName=group, logStreamName=stream)
        event = {"timestamp": int(time.time() * 1000), "message": "mount_fsx: fsx_mountname is wrong\n"}
        account.logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=[event])
        done = aws("deploy", "name=bad", ZONE, "confirm=true")
        assert done.returncode == 1
        assert "cluster bad: Creating" in done.stderr
        assert "the cluster bad is Failed: Lifecycle scripts did not run successfully." in done.stderr
        assert f"group {group}, stream LifecycleConfig/<group>/<instance-id>" in done.stderr
        assert f"{stream}:" in done.stderr
        assert "mount_fsx: fsx_mountname is wrong" in done.stderr
        take_down = "python -m cluster delete name=bad region=us-west-2 confirm=true"
        assert done.stderr.endswith(f"paid until it is taken down: {take_down}\n")
        assert "Traceback" not in done.stderr
        status = aws("status", "name=bad")
        assert status.returncode == 1
        assert "Lifecycle scripts did not run" in status.stdout
        assert take_down in " ".join(status.stdout.split())
    finally:
        done = aws("delete", "name=bad", "confirm=true")
        SCENES.clear()
    assert done.returncode == 0, done.stderr


def test_the_file_system_can_be_kept_and_taken_up_again(aws, account):
    assert aws("deploy", "name=demo", ZONE, "confirm=true").returncode == 0
    (before,) = account.fsx.describe_file_systems()["FileSystems"]
    done = aws("delete", "name=demo", "confirm=true", "keep_fsx=true")
    assert done.returncode == 0, done.stderr
    assert f"file system {before['FileSystemId']}" in done.stdout
    kept = {kind: number for kind, number in account.count().items() if number}
    assert kept == {"stacks": 1, "file systems": 1, "VPCs": 1, "subnets": 1, "security groups": 1}
    assert aws("deploy", "name=demo", "confirm=true").returncode == 0  # the stack knows its zone
    (after,) = account.fsx.describe_file_systems()["FileSystems"]
    assert after["FileSystemId"] == before["FileSystemId"]
    assert aws("delete", "name=demo", "confirm=true").returncode == 0


def test_what_others_have_made_is_not_touched(aws, account):
    account.cloudformation.create_stack(
        StackName="demo",
        TemplateBody=json.dumps({"Resources": {"Topic": {"Type": "AWS::SNS::Topic", "Properties": {}}}}),
    )
    for command in ("deploy", "delete"):
        done = aws(command, "name=demo", ZONE, "confirm=true")
        assert done.returncode == 1
        assert "there is a stack demo that is not of python -m cluster" in done.stderr
    account.cloudformation.delete_stack(StackName="demo")
    assert template().count("trntune:cluster") == 3
    role = f"arn:aws:iam::{ACCOUNT}:role/other"
    account.sagemaker.create_cluster(
        ClusterName="demo",
        InstanceGroups=[
            {
                "InstanceGroupName": "workers", "InstanceType": "ml.trn1.32xlarge", "InstanceCount": 1,
                "LifeCycleConfig": {"SourceS3Uri": "s3://sagemaker-other/src", "OnCreate": "on_create.sh"},
                "ExecutionRole": role, "ThreadsPerCore": 1,
            }
        ],
    )  # fmt: skip
    done = aws("delete", "name=demo", "confirm=true")
    assert done.returncode == 1
    assert "there is a cluster demo that is not of python -m cluster" in done.stderr
    assert account.count()["clusters"] == 1
    account.sagemaker.delete_cluster(ClusterName="demo")


def test_what_is_left_is_listed_and_is_no_success(aws, account):
    """A network of an earlier cluster with an interface in it, which AWS would not delete."""
    tags = [{"ResourceType": "vpc", "Tags": [{"Key": "trntune:cluster", "Value": "demo"}]}]
    vpc = account.ec2.create_vpc(CidrBlock="10.9.0.0/16", TagSpecifications=tags)["Vpc"]["VpcId"]
    subnet = account.ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/24")["Subnet"]["SubnetId"]
    interface = account.ec2.create_network_interface(SubnetId=subnet, Description="of a node")["NetworkInterface"]
    done = aws("delete", "name=demo", "confirm=true")
    assert done.returncode == 1
    assert "left, and perhaps paid" in done.stdout
    assert f"network {vpc}" in done.stdout
    assert f"interface {interface['NetworkInterfaceId']} (of a node)" in done.stdout
    account.ec2.delete_network_interface(NetworkInterfaceId=interface["NetworkInterfaceId"])
    account.ec2.delete_subnet(SubnetId=subnet)
    account.ec2.delete_vpc(VpcId=vpc)
