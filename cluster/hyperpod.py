"""The cluster as SageMaker has it: states, nodes, logs, and how it differs from what is wanted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cluster.aws import Aws, error_code, one_line
from cluster.waiting import Patience, wait
from launcher.errors import TrntuneError

Json = dict[str, Any]

IN_SERVICE, FAILED, ROLLING_BACK = "InService", "Failed", "RollingBack"
# Of each log stream that is shown after a failure.
_LOG_LINES = 12


@dataclass(frozen=True)
class Node:
    """One instance."""

    group: str
    id: str
    type: str
    status: str
    message: str
    launched: str


@dataclass(frozen=True)
class Cluster:
    """A cluster as it stands; ``raw`` is AWS's whole answer."""

    raw: Json

    @property
    def name(self) -> str:
        return str(self.raw["ClusterName"])

    @property
    def arn(self) -> str:
        return str(self.raw["ClusterArn"])

    @property
    def id(self) -> str:
        """Twelve characters that AWS has given it."""
        return self.arn.rpartition("/")[2]

    @property
    def status(self) -> str:
        return str(self.raw["ClusterStatus"])

    @property
    def failure(self) -> str:
        return str(self.raw.get("FailureMessage") or "")

    @property
    def log_group(self) -> str:
        return f"/aws/sagemaker/Clusters/{self.name}/{self.id}"

    @property
    def groups(self) -> list[Json]:
        return list(self.raw.get("InstanceGroups") or [])


def find(aws: Aws, name: str) -> Cluster | None:
    """The cluster of that name; None where there is none. Raises TrntuneError."""
    from botocore.exceptions import ClientError

    with one_line():
        try:
            return Cluster(aws.client("sagemaker").describe_cluster(ClusterName=name))
        except ClientError as error:
            if error_code(error) == "ResourceNotFound" or "ould not find cluster" in str(error):
                return None
            raise


def tags(aws: Aws, cluster: Cluster) -> dict[str, str]:
    """Its tags."""
    with one_line():
        answer = aws.client("sagemaker").list_tags(ResourceArn=cluster.arn)
    return {tag["Key"]: tag["Value"] for tag in answer.get("Tags") or []}


def nodes(aws: Aws, name: str) -> list[Node]:
    """Every instance, sorted by group and id."""
    with one_line():
        pages = aws.client("sagemaker").get_paginator("list_cluster_nodes").paginate(ClusterName=name)
        found = [node for page in pages for node in page["ClusterNodeSummaries"]]
    listed = [
        Node(
            node["InstanceGroupName"],
            node["InstanceId"],
            node["InstanceType"],
            node["InstanceStatus"]["Status"],
            node["InstanceStatus"].get("Message") or "",
            node["LaunchTime"].strftime("%Y-%m-%d %H:%M") if node.get("LaunchTime") else "",
        )
        for node in found
    ]
    return sorted(listed, key=lambda node: (node.group, node.id))


def create(aws: Aws, request: Json) -> None:
    """Ask for the cluster."""
    with one_line():
        aws.client("sagemaker").create_cluster(**request)


def wait_for(aws: Aws, name: str, patience: Patience) -> Cluster:
    """The cluster when it is in service. Raises TrntuneError with AWS's reason, and the log to read, when it isn't."""

    def ask() -> tuple[Cluster, str, bool]:
        cluster = find(aws, name)
        if cluster is None:
            raise TrntuneError(f"the cluster {name} has disappeared while it was waited for")
        return cluster, _progress(cluster), cluster.status in (IN_SERVICE, FAILED, ROLLING_BACK)

    cluster = wait(f"cluster {name}", ask, patience)
    if cluster.status != IN_SERVICE:
        raise TrntuneError("\n".join([explain(cluster), *logs_of_failure(aws, cluster)]))
    return cluster


def _progress(cluster: Cluster) -> str:
    counts = [f"{group['InstanceGroupName']} {_count(group)}" for group in cluster.groups]
    return f"{cluster.status} ({', '.join(counts)})" if counts else cluster.status


def _count(group: Json) -> str:
    return f"{group.get('CurrentCount', '?')}/{group.get('TargetCount', '?')}"


def explain(cluster: Cluster) -> str:
    """Why it failed, in AWS's words, and where the lifecycle scripts' output is."""
    return (
        f"the cluster {cluster.name} is {cluster.status}: {cluster.failure or 'AWS gives no reason'}; lifecycle log: "
        f"group {cluster.log_group}, stream LifecycleConfig/<group>/<instance-id>; read it: aws logs tail "
        f"{cluster.log_group}"
    )


def logs_of_failure(aws: Aws, cluster: Cluster) -> list[str]:
    """The last lines of each lifecycle log, as far as they can be read."""
    try:
        with one_line():
            logs = aws.client("logs")
            streams = logs.describe_log_streams(
                logGroupName=cluster.log_group, logStreamNamePrefix="LifecycleConfig/", limit=5
            )["logStreams"]
            lines = []
            for stream in streams:
                events = logs.get_log_events(
                    logGroupName=cluster.log_group, logStreamName=stream["logStreamName"], limit=_LOG_LINES
                )["events"]
                lines += [f"  {stream['logStreamName']}:", *(f"    {event['message'].rstrip()}" for event in events)]
    except TrntuneError:  # no log group yet, or no permission: the line above says where it would be
        return []
    return lines


def differences(cluster: Cluster, request: Json) -> list[str]:
    """How the cluster differs from the request, a line each. What AWS doesn't tell is not compared."""
    there = {group["InstanceGroupName"]: group for group in cluster.groups}
    wanted = {group["InstanceGroupName"]: group for group in request["InstanceGroups"]}
    lines = [f"instance group {name}: only in the cluster" for name in there if name not in wanted]
    for name, group in wanted.items():
        if name not in there:
            lines.append(f"instance group {name}: not in the cluster")
            continue
        lines += _compare(f"{name}.", {**there[name], "InstanceCount": there[name].get("TargetCount")}, group)
    lines += _compare("", cluster.raw, {key: request[key] for key in ("VpcConfig", "NodeRecovery", "Orchestrator")
                                        if key in request})  # fmt: skip
    return lines


def _compare(path: str, there: Json, wanted: Json) -> list[str]:
    return [
        f"{path}{key}: {_brief(there[key])} there, {_brief(value)} in the configuration"
        for key, value in wanted.items()
        if there.get(key) is not None and not _same(there[key], value)
    ]


def _brief(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)


def _same(there: Any, wanted: Any) -> bool:
    """Equal, but for members that AWS has added to what was asked for."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        return all(key in there and _same(there[key], value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(there, list):
        return len(there) == len(wanted) and all(map(_same, there, wanted))
    return bool(there == wanted)


def delete(aws: Aws, cluster: Cluster, patience: Patience) -> None:
    """Delete it, unless AWS is at it already, and wait until it is gone. Raises TrntuneError."""
    if cluster.status != "Deleting":
        with one_line():
            aws.client("sagemaker").delete_cluster(ClusterName=cluster.name)

    begun = False

    def ask() -> tuple[Cluster | None, str, bool]:
        nonlocal begun
        found = find(aws, cluster.name)
        if found is None:
            return None, "gone", True
        begun = begun or found.status == "Deleting"
        return found, _progress(found), begun and found.status == FAILED

    left = wait(f"cluster {cluster.name}", ask, patience)
    if left is not None:
        raise TrntuneError(f"the cluster {cluster.name} could not be deleted: {left.failure or left.status}")
