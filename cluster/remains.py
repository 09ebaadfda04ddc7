"""What of a cluster is there, whoever left it: asked of every service by itself, not of the stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster import bucket, standing
from cluster import stack as stacks
from cluster.aws import Aws, Denied, NoAccess, one_line
from cluster.documents import TAG
from launcher.errors import TrntuneError


@dataclass(frozen=True)
class Remain:
    """One thing that is there, or that can't be known."""

    line: str
    with_fsx: bool = False
    """it is what keep_fsx=true leaves on purpose: the stack's file system, or what that hangs in"""


def log_groups(aws: Aws, name: str) -> list[str]:
    """CloudWatch's log groups of every cluster that had this name."""
    with one_line():
        pages = (
            aws.client("logs")
            .get_paginator("describe_log_groups")
            .paginate(logGroupNamePrefix=f"/aws/sagemaker/Clusters/{name}/")
        )
        return [group["logGroupName"] for page in pages for group in page["logGroups"]]


def own_log_groups(aws: Aws, name: str, found: standing.Standing) -> list[str]:
    """The same, without that of a cluster which somebody else has made."""
    foreign = found.foreign_cluster.log_group if found.foreign_cluster else None
    return [group for group in log_groups(aws, name) if group != foreign]


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


def interfaces(aws: Aws, vpc: str) -> list[tuple[str, str]]:
    """Id and description of the network interfaces in a VPC: while there is one, its subnet can't be deleted."""
    with one_line():
        answer = aws.client("ec2").describe_network_interfaces(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
    return [
        (interface["NetworkInterfaceId"], interface.get("Description") or interface["Status"])
        for interface in answer["NetworkInterfaces"]
    ]


def everything(aws: Aws, name: str) -> list[Remain]:
    """What is there and ours. A service that may not be asked is listed as not known; the others still are."""
    found: list[Remain] = []
    try:
        stands = standing.look(aws, name)
    except TrntuneError as error:
        found, stands = [_unknown("cluster and stack", error)], standing.Standing()
        if not isinstance(error, Denied):
            return found
    for what, ask in _askers(aws, name, stands).items():
        try:
            found += ask()
        except TrntuneError as error:
            found.append(_unknown(what, error))
            if isinstance(error, NoAccess) and not isinstance(error, Denied):
                return [*found, Remain("the rest: not known")]  # no network, no login: it's the same everywhere
    return found


def listed(aws: Aws, name: str, heading: str) -> list[str]:
    """That as lines under a heading; none where nothing is there."""
    lines = [f"  {remain.line}" for remain in everything(aws, name)]
    return [heading, *lines] if lines else []


def _unknown(what: str, error: TrntuneError) -> Remain:
    return Remain(f"{what}: not known ({error})")


def _askers(aws: Aws, name: str, stands: standing.Standing) -> dict[str, Callable[[], Iterator[Remain]]]:
    return {
        "cluster": lambda: _cluster(stands),
        "stack": lambda: _stack(aws, stands),
        "buckets": lambda: (Remain(f"bucket {found}") for found in bucket.of_cluster(aws, name)),
        "file systems and networks": lambda: _storage(aws, name, stands),
        "log groups": lambda: (Remain(f"log group {group}") for group in own_log_groups(aws, name, stands)),
    }


def _cluster(stands: standing.Standing) -> Iterator[Remain]:
    if (cluster := stands.own_cluster) is not None:
        yield Remain(f"cluster {cluster.name} ({cluster.status})")


def _stack(aws: Aws, stands: standing.Standing) -> Iterator[Remain]:
    there = stands.own_stack
    if there is None:
        return
    why = f": {there.reason}" if there.rolled_back and there.reason else ""
    yield Remain(f"stack {there.name} ({there.status}{why})", with_fsx=there.good and not there.has_compute)
    if there.rolled_back:
        for member, physical, status in stacks.members_of(aws, there.id):
            yield Remain(f"  {member} {physical} ({status})")


def _storage(aws: Aws, name: str, stands: standing.Standing) -> Iterator[Remain]:
    """File systems, networks, and the interfaces in these: all but the file system's own keep a network from going."""
    outputs = stands.own_stack.outputs if stands.own_stack else {}
    systems = file_systems(aws, name)
    kept = [system for system in systems if system["FileSystemId"] == outputs.get("FileSystemId")]
    its = {interface for system in kept for interface in system.get("NetworkInterfaceIds") or []}
    for system in systems:
        yield Remain(f"file system {system['FileSystemId']} ({system['StorageCapacity']} GiB)", system in kept)
    for vpc in networks(aws, name):
        yield Remain(f"network {vpc}", bool(kept) and vpc == outputs.get("VpcId"))
        for interface, what in interfaces(aws, vpc):
            yield Remain(f"  interface {interface} ({what})", interface in its)
