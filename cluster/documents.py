"""What HyperPod is sent: the request for create_cluster and, in scripts mode, provisioning_parameters.json."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from cluster.files import PREFIX
from cluster.schema import API, SCRIPTS, GroupConfig, SetupConfig, groups

REQUEST, PARAMETERS, SETTINGS = "create_cluster.json", "provisioning_parameters.json", "trntune.env"
TAG = "trntune:cluster"

Json = dict[str, Any]


@dataclass(frozen=True)
class Resources:
    """What the stack makes and the documents name."""

    subnet: str
    security_group: str
    role: str
    bucket: str
    fsx_dns_name: str
    fsx_mount_name: str


def placeholders(config: SetupConfig) -> Resources:
    """Stand-ins before there is a stack. They have the shape that AWS's model asks for, and look like nothing real."""
    return Resources(
        subnet="subnet-PLACEHOLDER",
        security_group="sg-PLACEHOLDER",
        role="arn:aws:iam::000000000000:role/PLACEHOLDER",
        bucket=f"sagemaker-{config.name}-placeholder",
        fsx_dns_name=f"fs-00000000.fsx.{config.region}.amazonaws.com",
        fsx_mount_name="PLACEHLD",
    )


def request(config: SetupConfig, resources: Resources) -> Json:
    """Arguments of create_cluster."""
    document: Json = {
        "ClusterName": config.name,
        "NodeRecovery": config.node_recovery,
        "InstanceGroups": [_group(config, group, resources) for group in groups(config)],
        "VpcConfig": {"SecurityGroupIds": [resources.security_group], "Subnets": [resources.subnet]},
        "Tags": [{"Key": TAG, "Value": config.name}],
    }
    if config.mode == API:
        document["Orchestrator"] = {"Slurm": {"SlurmConfigStrategy": config.slurm_config_strategy}}
    return document


def _group(config: SetupConfig, group: GroupConfig, resources: Resources) -> Json:
    volumes: list[Json] = [{"EbsVolumeConfig": {"VolumeSizeInGB": group.volume_gb}}]
    document: Json = {
        "InstanceGroupName": group.name,
        "InstanceType": group.instance_type,
        "InstanceCount": group.count,
        "InstanceStorageConfigs": volumes,
        "ExecutionRole": resources.role,
        "ThreadsPerCore": group.threads_per_core,
    }
    if config.mode == SCRIPTS:
        source = f"s3://{resources.bucket}/{PREFIX}"
        return {**document, "LifeCycleConfig": {"SourceS3Uri": source, "OnCreate": config.lifecycle.entry}}
    volumes.append({"FsxLustreConfig": _lustre(config, resources)})
    return {**document, "SlurmConfig": _slurm(config, group)}


def _lustre(config: SetupConfig, resources: Resources) -> Json:
    return {
        "DnsName": resources.fsx_dns_name,
        "MountName": resources.fsx_mount_name,
        "MountPath": config.storage.mount_path,
    }


def _slurm(config: SetupConfig, group: GroupConfig) -> Json:
    if group is config.controller:
        return {"NodeType": "Controller"}
    if group is config.login:
        return {"NodeType": "Login"}
    return {"NodeType": "Compute", "PartitionNames": [config.workers.partition]}


def parameters(config: SetupConfig, resources: Resources) -> Json | None:
    """provisioning_parameters.json: by it HyperPod and the lifecycle scripts know who does what. None in API mode."""
    if config.mode == API:
        return None
    workers = {"instance_group_name": config.workers.name, "partition_name": config.workers.partition}
    return {
        "version": "1.0.0",
        "workload_manager": "slurm",
        "controller_group": config.controller.name,
        **({"login_group": config.login.name} if config.login.count else {}),
        "worker_groups": [workers] if config.workers.count else [],
        "fsx_dns_name": resources.fsx_dns_name,
        "fsx_mountname": resources.fsx_mount_name,
    }


def settings(config: SetupConfig) -> str:
    """trntune.env: what the project's own scripts need beside that, as shell assignments."""
    return f"MOUNT_PATH={shlex.quote(config.storage.mount_path)}\n"
