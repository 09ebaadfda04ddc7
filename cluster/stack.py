"""The CloudFormation stack: network, file system, bucket, role."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cluster.aws import Aws, error_code, one_line
from cluster.documents import TAG, Resources
from cluster.files import template
from cluster.schema import SetupConfig
from cluster.waiting import Patience, say, wait
from launcher.errors import TrntuneError

_CAPABILITIES = ["CAPABILITY_IAM"]
_GOOD = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")
_BAD = ("FAILED", "ROLLBACK")
_BEGIN = ("CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS")


@dataclass(frozen=True)
class Stack:
    """A stack as it stands."""

    id: str
    name: str
    status: str
    reason: str
    parameters: dict[str, str]
    outputs: dict[str, str]
    tags: dict[str, str]

    @property
    def at_work(self) -> bool:
        return self.status.endswith("_IN_PROGRESS")

    @property
    def good(self) -> bool:
        return self.status in _GOOD

    @property
    def rolled_back(self) -> bool:
        """It failed, or is on its way back from a failure."""
        return not self.good and any(word in self.status for word in _BAD)

    @property
    def lost(self) -> bool:
        """Nothing can be made of it any more: it has failed, or is being taken away."""
        return self.status.startswith(("ROLLBACK_", "DELETE_")) or (self.rolled_back and not self.at_work)

    @property
    def has_compute(self) -> bool:
        """False when only the file system was kept."""
        return self.parameters.get("Compute") == "true"


def parameters(config: SetupConfig) -> dict[str, str]:
    """Parameters of the template. The zone is null only before validate has refused it."""
    network = config.network
    return {
        "ClusterName": config.name,
        "AvailabilityZoneId": network.availability_zone_id or "PLACEHOLDER",
        "VpcCidr": network.vpc_cidr,
        "PublicCidr": network.public_cidr,
        "PrivateCidr": network.private_cidr,
        "FsxCapacityGib": str(config.storage.capacity_gib),
        "FsxThroughput": str(config.storage.throughput),
        "Compute": "true",
    }


def find(aws: Aws, name: str) -> Stack | None:
    """The stack of that name or id; None where there is none. Raises TrntuneError."""
    from botocore.exceptions import ClientError

    with one_line():
        try:
            answer = aws.client("cloudformation").describe_stacks(StackName=name)
        except ClientError as error:
            if error_code(error) == "ValidationError" and "does not exist" in str(error):
                return None
            raise
    found = answer["Stacks"][0]
    return Stack(
        found["StackId"],
        found["StackName"],
        found["StackStatus"],
        found.get("StackStatusReason", ""),
        {pair["ParameterKey"]: pair["ParameterValue"] for pair in found.get("Parameters") or []},
        {pair["OutputKey"]: pair["OutputValue"] for pair in found.get("Outputs") or []},
        {pair["Key"]: pair["Value"] for pair in found.get("Tags") or []},
    )


def resources(stack: Stack) -> Resources:
    """What the documents need. Raises TrntuneError when the stack lacks it."""
    names = ("SubnetId", "SecurityGroupId", "RoleArn", "BucketName", "FsxDnsName", "FsxMountName")
    missing = [output for output in names if output not in stack.outputs]
    if missing:
        raise TrntuneError(f"the stack has no output {missing[0]}: was its template changed by hand?")
    return Resources(*(stack.outputs[output] for output in names))


def with_zone_of(there: Stack | None, config: SetupConfig) -> SetupConfig:
    """The configuration, with the zone of the stack that is there if it has none itself."""
    if there is None or config.network.availability_zone_id is not None:
        return config
    zone = there.parameters.get("AvailabilityZoneId")
    return replace(config, network=replace(config.network, availability_zone_id=zone))


def differences(stack: Stack, config: SetupConfig) -> list[str]:
    """How the stack differs from the configuration, a line for each parameter."""
    return [
        f"{key}: {stack.parameters.get(key)} there, {wanted} in the configuration"
        for key, wanted in parameters(config).items()
        if stack.parameters.get(key) != wanted and key != "Compute"
    ]


def ensure(aws: Aws, config: SetupConfig) -> Stack:
    """The stack, complete: made if absent, waited for, never changed. Raises TrntuneError with the reason."""
    patience = Patience.of(config)
    stack = find(aws, config.name)
    if stack is None:
        _create(aws, config)
    elif different := [] if stack.rolled_back else differences(stack, config):
        raise TrntuneError(
            f"the stack {config.name} differs from the configuration ({'; '.join(different)}): give the values that it "
            "has, or delete it first"
        )
    elif (stack := settled(aws, stack, patience)).good and not stack.has_compute:
        say(f"stack {config.name}: the file system was kept; making the rest again")
        set_compute(aws, stack, True)
    stack = wait_for(aws, config.name, patience)
    if not stack.good or not stack.has_compute:
        raise TrntuneError(why(aws, stack))
    return stack


def _create(aws: Aws, config: SetupConfig) -> None:
    with one_line():
        aws.client("cloudformation").create_stack(
            StackName=config.name,
            TemplateBody=template(),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters(config).items()],
            Capabilities=_CAPABILITIES,
            Tags=[{"Key": TAG, "Value": config.name}],
        )


def set_compute(aws: Aws, stack: Stack, wanted: bool) -> None:
    """Begin to add or to take away everything but the file system and the network that it hangs in."""
    kept = [{"ParameterKey": key, "UsePreviousValue": True} for key in stack.parameters if key != "Compute"]
    with one_line():
        aws.client("cloudformation").update_stack(
            StackName=stack.id,
            UsePreviousTemplate=True,
            Parameters=[*kept, {"ParameterKey": "Compute", "ParameterValue": str(wanted).lower()}],
            Capabilities=_CAPABILITIES,
        )


def wait_for(aws: Aws, name: str, patience: Patience) -> Stack:
    """The stack when nothing is at work in it any more."""

    def ask() -> tuple[Stack, str, bool]:
        stack = find(aws, name)
        if stack is None:
            raise TrntuneError(f"the stack {name} has disappeared while it was waited for")
        return stack, _progress(aws, stack), not stack.at_work

    return wait(f"stack {name}", ask, patience)


def settled(aws: Aws, stack: Stack, patience: Patience) -> Stack:
    """The stack when what an earlier command has begun is at its end: until then AWS changes nothing else in it."""
    return wait_for(aws, stack.name, patience) if stack.at_work else stack


def _progress(aws: Aws, stack: Stack) -> str:
    if not stack.at_work:
        return stack.status
    members = members_of(aws, stack.id)
    done = sum(status.endswith("_COMPLETE") for _, _, status in members)
    return f"{stack.status}, {done} of {len(members)} resources"


def members_of(aws: Aws, stack: str) -> list[tuple[str, str, str]]:
    """Name in the template, physical id and status of the stack's resources that exist or are being made."""
    with one_line():
        pages = aws.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
        found = [summary for page in pages for summary in page["StackResourceSummaries"]]
    return [
        (member["LogicalResourceId"], member.get("PhysicalResourceId") or "", member["ResourceStatus"])
        for member in found
        if member["LogicalResourceId"] and member["ResourceStatus"] != "DELETE_COMPLETE"
    ]


def why(aws: Aws, stack: Stack) -> str:
    """The first resource that failed says why; what follows it was only cancelled."""
    failed = [event for event in _last_events(aws, stack) if event["ResourceStatus"].endswith("_FAILED")]
    told = [event for event in failed if "cancelled" not in event.get("ResourceStatusReason", "")]
    reason = f"{told[-1]['LogicalResourceId']}: {told[-1].get('ResourceStatusReason', '')}" if told else stack.reason
    return f"the stack {stack.name} is {stack.status}: {reason or 'AWS gives no reason'}"


def _last_events(aws: Aws, stack: Stack) -> list[dict[str, Any]]:
    """The newest first, back to where AWS was told to make, change or delete the stack."""
    events: list[dict[str, Any]] = []
    with one_line():
        for page in aws.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName=stack.id):
            for event in page["StackEvents"]:
                events.append(event)
                if event.get("PhysicalResourceId") == stack.id and event["ResourceStatus"] in _BEGIN:
                    return events
    return events


def delete(aws: Aws, stack: Stack, patience: Patience) -> Stack | None:
    """Delete it and wait. Returns None when it is gone, else the stack with what AWS could not delete."""
    with one_line():
        aws.client("cloudformation").delete_stack(StackName=stack.id)

    def ask() -> tuple[Stack | None, str, bool]:
        # By its id a deleted stack can still be asked for.
        found = find(aws, stack.id)
        if found is None or found.status == "DELETE_COMPLETE":
            return None, "gone", True
        return found, _progress(aws, found), found.status == "DELETE_FAILED"

    return wait("stack", ask, patience)
