"""Who this node is, and who the others are: HyperPod's resource_config.json and provisioning_parameters.json together.

Run on the node by on_create.sh and start_slurm.sh with the system's own Python, so only its standard library is used.

    describe_node.py RESOURCES PARAMETERS ADDRESSES     shell assignments about the node with one of these addresses
    describe_node.py RESOURCES PARAMETERS --slurm-conf  slurm.conf's lines of nodes and partitions
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Cores, and memory in MiB less 5 % for the system. AWS's tables of EC2 instance types. Hyper-threads are not counted:
# threads_per_core=1 switches them off.
HARDWARE = {
    "ml.trn1.32xlarge": (64, 498_074),
    "ml.trn1n.32xlarge": (64, 498_074),
    "ml.trn2.48xlarge": (96, 1_992_294),
}


def read(path: str) -> dict[str, Any]:
    """A JSON file. Ends the process with one line where it can't be read."""
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")
    return content


def addresses(resources: dict[str, Any], group: str) -> list[str]:
    """Addresses of a group's instances."""
    return [
        str(instance["CustomerIpAddress"])
        for found in resources["InstanceGroups"]
        if found["Name"] == group
        for instance in found.get("Instances") or []
    ]


def role_of(group: str, parameters: dict[str, Any]) -> str:
    """What a group does: "controller", "login" or "worker". Ends the process for one that has no task."""
    if group == parameters["controller_group"]:
        return "controller"
    if group == parameters.get("login_group"):
        return "login"
    workers = [worker["instance_group_name"] for worker in parameters["worker_groups"]]
    if group in workers:
        return "worker"
    known = ", ".join(str(name) for name in (parameters["controller_group"], parameters.get("login_group"), *workers))
    sys.exit(f"instance group {group} has no task in provisioning_parameters.json, which names {known}")


def facts(resources: dict[str, Any], parameters: dict[str, Any], own: list[str]) -> dict[str, str]:
    """What on_create.sh wants to know of the node with one of the addresses ``own``."""
    names = [
        group["Name"] for group in resources["InstanceGroups"] if set(addresses(resources, group["Name"])) & set(own)
    ]
    if not names:
        sys.exit(f"no instance in resource_config.json has one of this node's addresses: {' '.join(own)}")
    controllers = addresses(resources, parameters["controller_group"])
    if not controllers:
        sys.exit(f"resource_config.json has no instance of the controller's group {parameters['controller_group']}")
    return {
        "group": names[0],
        "role": role_of(names[0], parameters),
        "controller_address": controllers[0],
        "fsx_dns_name": parameters.get("fsx_dns_name") or "",
        "fsx_mount_name": parameters.get("fsx_mountname") or "",
    }


def host(address: str) -> str:
    """The host name that EC2 gives by default: ip-10-0-1-2."""
    return "ip-" + address.replace(".", "-")


def slurm_lines(resources: dict[str, Any], parameters: dict[str, Any]) -> Iterator[str]:
    """NodeName and PartitionName lines of slurm.conf."""
    types = {group["Name"]: group.get("InstanceType", "") for group in resources["InstanceGroups"]}
    partitions: dict[str, list[str]] = {}
    for worker in parameters["worker_groups"]:
        group = worker["instance_group_name"]
        kind = types.get(group, "")
        if kind not in HARDWARE and addresses(resources, group):
            sys.exit(
                f"instance group {group}: cores and memory of {kind or 'its instances'} are not known here: write them "
                "into HARDWARE of describe_node.py"
            )
        for address in addresses(resources, group):
            partitions.setdefault(worker["partition_name"], []).append(host(address))
            yield (
                f"NodeName={host(address)} NodeAddr={address} Sockets=1 CoresPerSocket={HARDWARE[kind][0]} "
                f"ThreadsPerCore=1 RealMemory={HARDWARE[kind][1]} State=UNKNOWN"
            )
    for number, (partition, nodes) in enumerate(partitions.items()):
        default = "YES" if number == 0 else "NO"
        yield f"PartitionName={partition} Nodes={','.join(nodes)} Default={default} MaxTime=INFINITE State=UP"


def main(arguments: list[str]) -> None:
    """Process entry."""
    resources, parameters = read(arguments[0]), read(arguments[1])
    if arguments[2] == "--slurm-conf":
        lines = list(slurm_lines(resources, parameters))
    else:
        found = facts(resources, parameters, arguments[2].split())
        lines = [f"{name}={shlex.quote(value)}" for name, value in found.items()]
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
