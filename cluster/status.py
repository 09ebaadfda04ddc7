"""`python -m cluster status`: the stack, the cluster, every node."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from rich.markup import escape

from cluster import hyperpod, remains, stack
from cluster.aws import Aws, Denied
from cluster.cost import running, running_lines
from cluster.deploy import take_down
from cluster.schema import SetupConfig
from cluster.show import console, table
from launcher.errors import FAILED


def run(config: SetupConfig) -> int:
    """Print how all stands. Returns 0 when the cluster is in service, else 1."""
    aws = Aws(config.region)
    there, cluster = stack.find(aws, config.name), hyperpod.find(aws, config.name)
    nodes = hyperpod.nodes(aws, config.name) if cluster else []
    systems = _file_systems(aws, config.name)
    if config.format == "json":
        print(json.dumps(_as_json(config, there, cluster, nodes, systems), indent=2))
    else:
        _print(config, there, cluster, nodes, systems)
    return 0 if cluster is not None and cluster.status == hyperpod.IN_SERVICE else FAILED


def _file_systems(aws: Aws, name: str) -> list[dict[str, Any]] | str:
    """Those, or why they can't be known: who may not ask for them sees the cluster all the same."""
    try:
        return remains.file_systems(aws, name)
    except Denied as error:
        return str(error)


def _as_json(
    config: SetupConfig,
    there: stack.Stack | None,
    cluster: hyperpod.Cluster | None,
    nodes: list[hyperpod.Node],
    systems: list[dict[str, Any]] | str,
) -> dict[str, Any]:
    return {
        "name": config.name,
        "region": config.region,
        "stack": None if there is None else {"status": there.status, "reason": there.reason, "outputs": there.outputs},
        "cluster": None
        if cluster is None
        else {
            "arn": cluster.arn,
            "status": cluster.status,
            "failure": cluster.failure,
            "log_group": cluster.log_group,
            "groups": _groups(cluster),
            "nodes": [asdict(node) for node in nodes],
            "usd_per_hour": running(config, _instances(cluster)).usd_per_hour,
        },
        "file_systems": None
        if isinstance(systems, str)
        else [
            {"id": system["FileSystemId"], "gib": system["StorageCapacity"], "state": system.get("Lifecycle")}
            for system in systems
        ],
    }


def _instances(cluster: hyperpod.Cluster | None) -> dict[str, int]:
    """How many of each type are there, and so paid."""
    count = Counter[str]()
    for group in cluster.groups if cluster else []:
        count[group.get("InstanceType") or f"group {group['InstanceGroupName']}"] += group.get("CurrentCount") or 0
    return dict(count)


def _groups(cluster: hyperpod.Cluster) -> list[dict[str, Any]]:
    return [
        {
            "name": group["InstanceGroupName"],
            "type": group.get("InstanceType"),
            "instances": group.get("CurrentCount"),
            "wanted": group.get("TargetCount"),
            "status": group.get("Status"),
        }
        for group in cluster.groups
    ]


def _print(
    config: SetupConfig,
    there: stack.Stack | None,
    cluster: hyperpod.Cluster | None,
    nodes: list[hyperpod.Node],
    systems: list[dict[str, Any]] | str,
) -> None:
    out = console()
    out.print(f"[bold]{escape(config.name)}[/] in {config.region}")
    rows = [
        ("stack", there.status if there else "absent"),
        ("cluster", cluster.status if cluster else "absent"),
        *_rows(systems),
    ]
    for name, value in rows:
        out.print(f"  {name:<12}{escape(value)}")
    if cluster is None:
        if there is not None or systems:
            out.print("cost: " + escape("; ".join(running_lines(config, {}))))
        return
    out.print(_group_table(cluster))
    if nodes:
        out.print(_node_table(nodes))
    if cluster.status in (hyperpod.FAILED, hyperpod.ROLLING_BACK):
        out.print(escape(f"paid until it is taken down (keep_fsx=true keeps the file system): {take_down(config)}"))
    if cluster.failure or cluster.status != hyperpod.IN_SERVICE:
        out.print(escape(hyperpod.explain(cluster)) if cluster.failure else f"log group {cluster.log_group}")
    out.print("cost: " + escape("; ".join(running_lines(config, _instances(cluster)))))


def _rows(systems: list[dict[str, Any]] | str) -> list[tuple[str, str]]:
    if isinstance(systems, str):
        return [("file system", f"not known ({systems})")]
    return [("file system", f"{system['FileSystemId']}, {system['StorageCapacity']:,} GiB") for system in systems]


def _group_table(cluster: hyperpod.Cluster) -> Any:
    result = table("instance group", "type", "instances", "status")
    for group in _groups(cluster):
        counted = f"{group['instances']} of {group['wanted']}"
        result.add_row(group["name"], group["type"] or "", counted, group["status"] or "")
    return result


def _node_table(nodes: list[hyperpod.Node]) -> Any:
    result = table("node", "group", "status", "since (UTC)")
    for node in nodes:
        state = f"{node.status}: {node.message}" if node.message else node.status
        result.add_row(node.id, node.group, escape(state), node.launched)
    return result
