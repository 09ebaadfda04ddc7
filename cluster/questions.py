"""What only AWS knows: whether the zone has the instance type, quotas, and how what was deployed looks now."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from cluster import bucket
from cluster.aws import Aws, one_line
from cluster.documents import PARAMETERS, Resources
from cluster.files import PREFIX
from cluster.findings import LATER, OK, PROBLEM, UNKNOWN, Finding, found
from cluster.schema import SCRIPTS, SetupConfig, groups
from cluster.stack import Stack
from cluster.standing import Standing, conflicts
from launcher.errors import TrntuneError

STANDING = "what is there already"
ZONE, QUOTA, SECURITY, STORAGE = "zone offers the instances", "quota", "security group", "file system's names"


def answered(check: str, ask: Callable[[], list[Finding]]) -> list[Finding]:
    """What AWS says; that it doesn't is unknown, which isn't well."""
    try:
        return ask()
    except TrntuneError as error:
        return [Finding(check, UNKNOWN, str(error))]


def standing(aws: Aws, config: SetupConfig, there: Standing) -> list[Finding]:
    """Whether deploy could go on from what stands."""
    return found(STANDING, conflicts(aws, config, there), "" if there.own_stack or there.own_cluster else "nothing")


def zone(aws: Aws, config: SetupConfig) -> list[Finding]:
    """Whether EC2 offers every instance type in the zone. No promise that there are any left."""
    wanted = sorted({group.instance_type.removeprefix("ml.") for group in groups(config)})
    offered = {kind: _zones_with(aws, kind) for kind in wanted}
    common = sorted(set.intersection(*offered.values()))
    given = config.network.availability_zone_id
    if given is None:
        listed = ", ".join(common) or "no zone of the region"
        why = f"network.availability_zone_id has no value: {' and '.join(wanted)} are offered in {listed}"
        return [Finding(ZONE, PROBLEM, why)]
    return found(ZONE, _not_offered(given, offered), given)


def _not_offered(given: str, offered: dict[str, set[str]]) -> Iterator[str]:
    for kind, zones in offered.items():
        if given not in zones:
            listed = ", ".join(sorted(zones)) or "no zone of the region"
            yield f"network.availability_zone_id={given}: EC2 offers {kind} in {listed}"


def _zones_with(aws: Aws, instance_type: str) -> set[str]:
    with one_line():
        pages = (
            aws.client("ec2")
            .get_paginator("describe_instance_type_offerings")
            .paginate(
                LocationType="availability-zone-id", Filters=[{"Name": "instance-type", "Values": [instance_type]}]
            )
        )
        return {offer["Location"] for page in pages for offer in page["InstanceTypeOfferings"]}


def quota(aws: Aws, config: SetupConfig) -> list[Finding]:
    """Whether the account may have as many instances of each type. What is in use by others isn't counted."""
    needed = Counter[str]()
    for group in groups(config):
        needed[group.instance_type] += group.count
    with one_line():
        pages = aws.client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
        limits = {quota["QuotaName"]: quota["Value"] for page in pages for quota in page["Quotas"]}
    return [_quota(kind, count, limits.get(f"{kind} for cluster usage")) for kind, count in sorted(needed.items())]


def _quota(kind: str, count: int, limit: float | None) -> Finding:
    name = f"{kind} for cluster usage"
    if limit is None:
        return Finding(QUOTA, UNKNOWN, f"AWS lists no quota {name!r}")
    if limit < count:
        why = f"{count} x {kind}, but the quota {name!r} is {limit:g}: ask for more in the Service Quotas console"
        return Finding(QUOTA, PROBLEM, why)
    return Finding(QUOTA, OK, f"{count} of {limit:g} {kind}")


def security(aws: Aws, group_id: str) -> list[Finding]:
    """The group lets its members, and nobody else, in; and lets them out to each other, as EFA needs."""
    with one_line():
        group = aws.client("ec2").describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]
    return found(SECURITY, _wrong_rules(group), group_id)


def _wrong_rules(group: dict[str, Any]) -> Iterator[str]:
    name = group["GroupId"]
    for direction, rules in (("in", group["IpPermissions"]), ("out", group["IpPermissionsEgress"])):
        if not any(_all_between_members(rule, name) for rule in rules):
            yield f"{name}: no rule that lets all protocols {direction} from and to the group itself: EFA needs it"
    for rule in group["IpPermissions"]:
        ranges = [*rule.get("IpRanges", []), *rule.get("Ipv6Ranges", []), *rule.get("PrefixListIds", [])]
        others = [pair["GroupId"] for pair in rule.get("UserIdGroupPairs", []) if pair["GroupId"] != name]
        if ranges or others:
            listed = [next(iter(entry.values())) for entry in ranges] + others
            yield f"{name}: lets others in: {', '.join(listed)}"


def _all_between_members(rule: dict[str, Any], name: str) -> bool:
    pairs = [pair["GroupId"] for pair in rule.get("UserIdGroupPairs", [])]
    return rule["IpProtocol"] == "-1" and name in pairs


def storage(aws: Aws, config: SetupConfig, stack: Stack, wanted: Resources) -> list[Finding]:
    """The names by which nodes mount the file system are those that FSx has, in the documents and in the bucket."""
    with one_line():
        system = aws.client("fsx").describe_file_systems(FileSystemIds=[stack.outputs["FileSystemId"]])["FileSystems"][
            0
        ]
    names = {"DNS name": system["DNSName"], "mount name": system["LustreConfiguration"]["MountName"]}
    ours = {"DNS name": wanted.fsx_dns_name, "mount name": wanted.fsx_mount_name}
    uploaded = _uploaded_names(aws, wanted.bucket) if config.mode == SCRIPTS else {}
    problems = [
        f"{what} in {place} is {given.get(what)}, FSx says {names[what]}"
        for place, given in (("the stack", ours), ("the bucket's provisioning_parameters.json", uploaded))
        for what in given
        if given[what] != names[what]
    ]
    return found(STORAGE, problems, names["mount name"])


def _uploaded_names(aws: Aws, name: str) -> dict[str, Any]:
    content = bucket.read(aws, name, f"{PREFIX}/{PARAMETERS}")
    if content is None:
        return {}
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    names = document if isinstance(document, dict) else {}  # somebody has written over it: no name in it is right
    return {"DNS name": names.get("fsx_dns_name"), "mount name": names.get("fsx_mountname")}


def later() -> list[Finding]:
    """Of what isn't there yet."""
    return [Finding(SECURITY, LATER), Finding(STORAGE, LATER)]
