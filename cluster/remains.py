"""What of a cluster is there, whoever left it: asked of every service by itself, not of the stack."""

from __future__ import annotations

from typing import Any

from cluster import bucket, hyperpod, stack
from cluster.aws import Aws, one_line
from cluster.documents import TAG


def log_groups(aws: Aws, name: str) -> list[str]:
    """CloudWatch's log groups of every cluster that had this name."""
    with one_line():
        pages = (
            aws.client("logs")
            .get_paginator("describe_log_groups")
            .paginate(logGroupNamePrefix=f"/aws/sagemaker/Clusters/{name}/")
        )
        return [group["logGroupName"] for page in pages for group in page["logGroups"]]


def file_systems(aws: Aws, name: str) -> list[dict[str, Any]]:
    """FSx file systems with the cluster's tag."""
    with one_line():
        pages = aws.client("fsx").get_paginator("describe_file_systems").paginate()
        found = [system for page in pages for system in page["FileSystems"]]
    return [system for system in found if {"Key": TAG, "Value": name} in (system.get("Tags") or [])]


def networks(aws: Aws, name: str) -> list[str]:
    """VPCs with the cluster's tag."""
    with one_line():
        answer = aws.client("ec2").describe_vpcs(Filters=[{"Name": f"tag:{TAG}", "Values": [name]}])
    return [vpc["VpcId"] for vpc in answer["Vpcs"]]


def interfaces(aws: Aws, vpc: str) -> list[str]:
    """Network interfaces in a VPC: while there is one, its subnet can't be deleted."""
    with one_line():
        answer = aws.client("ec2").describe_network_interfaces(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
    return [
        f"{interface['NetworkInterfaceId']} ({interface.get('Description') or interface['Status']})"
        for interface in answer["NetworkInterfaces"]
    ]


def everything(aws: Aws, name: str) -> list[str]:
    """A line for each thing that is there."""
    lines = []
    if (cluster := hyperpod.find(aws, name)) is not None:
        lines.append(f"cluster {name} ({cluster.status})")
    if (there := stack.find(aws, name)) is not None:
        why = f": {there.reason}" if there.rolled_back and there.reason else ""
        lines.append(f"stack {name} ({there.status}{why})")
        if there.rolled_back:
            members = stack.members_of(aws, there.id)
            lines += [f"  {member} {physical} ({status})" for member, physical, status in members]
    lines += [f"bucket {found}" for found in bucket.of_cluster(aws, name)]
    lines += [
        f"file system {system['FileSystemId']} ({system['StorageCapacity']} GiB)" for system in file_systems(aws, name)
    ]
    for vpc in networks(aws, name):
        lines += [f"network {vpc}", *(f"  interface {line}" for line in interfaces(aws, vpc))]
    return [*lines, *(f"log group {group}" for group in log_groups(aws, name))]
