"""What must agree between the documents, or HyperPod fails twenty minutes later without saying why.

Pure functions from documents to findings: for those that the configuration gives, and for hand-written ones.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cluster.findings import Finding, found
from cluster.schema import has_neuron

Json = Mapping[str, Any]


def check(request: Json, parameters: Json | None, files: Collection[str] | None) -> list[Finding]:
    """Findings of all checks. ``parameters`` is None in API mode, ``files`` where the bucket's contents are unknown.

    Hand-written documents may hold anything anywhere: what has the wrong type is a problem of its own here or of
    AWS's model, and is passed over by the other checks.
    """
    findings = [
        *found("names in both documents", _names(request, parameters)),
        *found("instance groups", _incomplete(request, parameters)),
        *found("one subnet", _subnets(request)),
    ]
    if any("LifeCycleConfig" in group for group in _groups(request)):
        findings += found("bucket", _bucket(request))
        if files is not None:
            findings += found("entry script", _entry(request, files))
    return findings


def _object(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _brief(value: Any) -> str:
    return json.dumps(value)[:60]


def _groups(request: Json) -> list[Json]:
    return [group for group in _list(request.get("InstanceGroups")) if isinstance(group, Mapping)]


def _name(group: Json) -> str:
    name = group.get("InstanceGroupName")
    return name if isinstance(name, str) else _brief(name)


def _names(request: Json, parameters: Json | None) -> Iterator[str]:
    names = [_name(group) for group in _groups(request)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"the request has several instance groups {name}"
    if parameters is None:
        yield from _api_names(request)
        return
    yield from (f"provisioning_parameters.json: {line}" for line in _misshapen(parameters))
    roles = _roles(parameters)
    for role, name in roles:
        if name not in names:
            yield (
                f"provisioning_parameters.json: {role} is {name}, but the request has no such instance group, only "
                f"{', '.join(names) or 'none'}"
            )
    for name in names:
        if name not in [listed for _, listed in roles]:
            yield f"instance group {name} has no task in provisioning_parameters.json"


def _misshapen(parameters: Json) -> Iterator[str]:
    """What the lifecycle scripts couldn't read. There is no model of AWS's for this document."""
    if parameters.get("workload_manager") != "slurm":
        yield f"workload_manager is {parameters.get('workload_manager')}, must be slurm"
    if "controller_group" not in parameters:
        yield "no controller_group"
    for key in ("version", "controller_group", "login_group", "fsx_dns_name", "fsx_mountname"):
        if key in parameters and not (isinstance(parameters[key], str) and parameters[key]):
            yield f"{key} is {_brief(parameters[key])}, must be a string"
    given = [key for key in ("fsx_dns_name", "fsx_mountname") if key in parameters]
    if len(given) == 1:
        yield f"{given[0]} alone mounts nothing: give fsx_dns_name and fsx_mountname, or neither"
    if not isinstance(parameters.get("worker_groups", []), list):
        yield f"worker_groups is {_brief(parameters['worker_groups'])}, must be a list of objects"
    for index, group in enumerate(_list(parameters.get("worker_groups"))):
        if not isinstance(group, Mapping):
            yield (
                f"worker_groups[{index}] is {_brief(group)}, must be an object with instance_group_name and "
                "partition_name"
            )
            continue
        for key in ("instance_group_name", "partition_name"):
            if not (isinstance(group.get(key), str) and group[key]):
                yield f"worker_groups[{index}].{key} is {_brief(group.get(key))}, must be a string"


def _roles(parameters: Json) -> list[tuple[str, str]]:
    """What each group that the parameters name is: ("controller_group", name), ..."""
    single = [(key, parameters.get(key)) for key in ("controller_group", "login_group")]
    workers = [("worker_groups", _object(group).get("instance_group_name")) for group in _workers(parameters)]
    return [(key, name) for key, name in (*single, *workers) if isinstance(name, str) and name]


def _workers(parameters: Json) -> list[Any]:
    return _list(parameters.get("worker_groups"))


def _node_type(group: Json) -> Any:
    return _object(group.get("SlurmConfig")).get("NodeType")


def _api_names(request: Json) -> Iterator[str]:
    kinds = [_node_type(group) for group in _groups(request)]
    if kinds.count("Controller") != 1:
        yield (
            f"{kinds.count('Controller')} instance groups have SlurmConfig.NodeType=Controller, must be one; with "
            "lifecycle scripts instead, provisioning_parameters.json must be there, too"
        )


def _incomplete(request: Json, parameters: Json | None) -> Iterator[str]:
    """What AWS's model lets be absent, since other kinds of clusters do without."""
    groups = _groups(request)
    if not groups:
        yield "the request has no InstanceGroups: there would be no instance"
    for group in groups:
        if "InstanceType" not in group and "InstanceRequirements" not in group:
            yield f"instance group {_name(group)} has no InstanceType"
        elif isinstance(kind := group.get("InstanceType"), str) and not kind.startswith("ml."):
            yield f"instance group {_name(group)}: InstanceType={kind}: SageMaker's types begin with ml."
        if parameters is not None and "LifeCycleConfig" not in group:
            yield f"instance group {_name(group)} has no LifeCycleConfig: nothing would set up Slurm on it"
        elif "LifeCycleConfig" not in group and "SlurmConfig" not in group:
            yield f"instance group {_name(group)} has neither LifeCycleConfig nor SlurmConfig"
    workers = {_name(group): group.get("InstanceType") for group in groups if _trains(group, parameters)}
    types = [kind for kind in workers.values() if isinstance(kind, str)]
    if types and not any(map(has_neuron, types)):
        yield f"no worker has a Neuron device: {', '.join(sorted(set(types)))}; Trainium's types begin with ml.trn"


def _trains(group: Json, parameters: Json | None) -> bool:
    if parameters is None:
        return bool(_node_type(group) == "Compute")
    return ("worker_groups", _name(group)) in _roles(parameters)


def _subnets(request: Json) -> Iterator[str]:
    places = [request.get("VpcConfig"), *(group.get("OverrideVpcConfig") for group in _groups(request))]
    listed = [subnet for place in places for subnet in _list(_object(place).get("Subnets"))]
    found = {subnet for subnet in listed if isinstance(subnet, str)}
    if not found:
        yield "no subnet: VpcConfig.Subnets must name the one of the file system"
    elif len(found) > 1:
        yield f"{len(found)} subnets ({', '.join(sorted(found))}): EFA works inside one subnet only"


def _sources(request: Json) -> Iterator[tuple[str, str, str]]:
    """Instance group, address of the scripts and script."""
    for group in _groups(request):
        if "LifeCycleConfig" in group:
            config = _object(group["LifeCycleConfig"])
            yield _name(group), str(config.get("SourceS3Uri")), str(config.get("OnCreate"))


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
