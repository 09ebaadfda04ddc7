"""What must agree between the documents, or HyperPod fails twenty minutes later without saying why.

Pure functions from documents to findings: for those that the configuration gives, and for hand-written ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cluster.findings import Finding, found

Json = Mapping[str, Any]


def check(request: Json, parameters: Json | None, files: Collection[str] | None) -> list[Finding]:
    """Findings of all checks. ``parameters`` is None in API mode, ``files`` where the bucket's contents are unknown."""
    findings = [
        *found("names in both documents", _names(request, parameters)),
        *found("one subnet", _subnets(request)),
    ]
    if any("LifeCycleConfig" in group for group in _groups(request)):
        findings += found("bucket", _bucket(request))
        if files is not None:
            findings += found("entry script", _entry(request, files))
    return findings


def _groups(request: Json) -> list[Json]:
    groups = request.get("InstanceGroups")
    return [group for group in groups if isinstance(group, Mapping)] if isinstance(groups, list) else []


def _names(request: Json, parameters: Json | None) -> Iterator[str]:
    names = [str(group.get("InstanceGroupName")) for group in _groups(request)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"the request has several instance groups {name}"
    if parameters is None:
        yield from _api_names(request)
        return
    if parameters.get("workload_manager") != "slurm":
        yield f"provisioning_parameters.json: workload_manager is {parameters.get('workload_manager')}, must be slurm"
    roles = _roles(parameters)
    for role, name in roles:
        if name not in names:
            yield (
                f"provisioning_parameters.json: {role} is {name}, but the request has no such instance group, only "
                f"{', '.join(names) or 'none'}"
            )
    if "controller_group" not in dict(roles):
        yield "provisioning_parameters.json: no controller_group"
    for name in names:
        if name not in [listed for _, listed in roles]:
            yield f"instance group {name} has no task in provisioning_parameters.json"


def _roles(parameters: Json) -> list[tuple[str, str]]:
    """What each group that the parameters name is: ("controller_group", name), ..."""
    single = [(key, str(parameters[key])) for key in ("controller_group", "login_group") if parameters.get(key)]
    workers = parameters.get("worker_groups") or []
    return [*single, *(("worker_groups", str(group.get("instance_group_name"))) for group in workers)]


def _api_names(request: Json) -> Iterator[str]:
    kinds = [(group.get("SlurmConfig") or {}).get("NodeType") for group in _groups(request)]
    if kinds.count("Controller") != 1:
        yield f"{kinds.count('Controller')} instance groups have SlurmConfig.NodeType=Controller, must be one"
    for group in _groups(request):
        if "LifeCycleConfig" not in group and "SlurmConfig" not in group:
            yield f"instance group {group.get('InstanceGroupName')} has neither LifeCycleConfig nor SlurmConfig"


def _subnets(request: Json) -> Iterator[str]:
    found = set((request.get("VpcConfig") or {}).get("Subnets") or [])
    for group in _groups(request):
        found |= set((group.get("OverrideVpcConfig") or {}).get("Subnets") or [])
    if len(found) != 1:
        yield f"{len(found)} subnets ({', '.join(sorted(found))}): EFA works inside one subnet only"


def _sources(request: Json) -> Iterator[tuple[str, str, str]]:
    """Instance group, address of the scripts and script."""
    for group in _groups(request):
        config = group.get("LifeCycleConfig") or {}
        yield str(group.get("InstanceGroupName")), str(config.get("SourceS3Uri")), str(config.get("OnCreate"))


def _bucket(request: Json) -> Iterator[str]:
    for name, source, _ in _sources(request):
        if not source.startswith("s3://sagemaker-"):
            yield (
                f"instance group {name}: SourceS3Uri={source}: must begin with s3://sagemaker-, the only buckets that "
                "AmazonSageMakerClusterInstanceRolePolicy lets nodes read"
            )


def _entry(request: Json, files: Collection[str]) -> Iterator[str]:
    for name, source, entry in _sources(request):
        key = f"{source.removeprefix('s3://').partition('/')[2].strip('/')}/{entry}".lstrip("/")
        if key not in files:
            yield f"instance group {name}: OnCreate={entry}: no such file among those that are uploaded"
