"""AWS's control plane on the loopback interface for the tests: moto's server, in this process.

What moto's CloudFormation lacks for the template is added here, by moto's own services: file systems, rules for what
leaves a security group, and taking away again what belongs to a network. Quotas are listed,
and clusters go through states if told to.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from moto.cloudformation.parsing import ResourceMap
from moto.core.common_models import CloudFormationModel
from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_ip_addresses import ElasticAddress
from moto.ec2.models.internet_gateways import InternetGateway
from moto.ec2.models.nat_gateways import NatGateway
from moto.ec2.models.route_tables import Route, RouteTable
from moto.ec2.models.security_groups import SecurityGroupIngress
from moto.ec2.models.subnets import SubnetRouteTableAssociation
from moto.ec2.models.vpcs import VPCEndPoint
from moto.ec2.models.vpn_gateway import VPCGatewayAttachment
from moto.fsx.models import FileSystem, fsx_backends
from moto.sagemaker.models import Cluster
from moto.servicequotas.responses import ServiceQuotasResponse

ACCOUNT = "123456789012"
MOUNT_NAME = "wxyzabcd"


class StackFileSystem(FileSystem, CloudFormationModel):
    """AWS::FSx::FileSystem, made by moto's own FSx."""

    @property
    def physical_resource_id(self) -> str:
        return self.file_system_id

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::FSx::FileSystem"

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return attr == "LustreMountName"

    def get_cfn_attribute(self, attribute_name: str) -> str:
        assert attribute_name == "LustreMountName"
        return MOUNT_NAME

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **kwargs: Any
    ) -> StackFileSystem:
        given = cloudformation_json["Properties"]
        system = fsx_backends[account_id][region_name].create_file_system(
            client_request_token="",
            file_system_type=given["FileSystemType"],
            file_system_type_version=given["FileSystemTypeVersion"],
            storage_capacity=int(given["StorageCapacity"]),
            storage_type=given["StorageType"],
            subnet_ids=given["SubnetIds"],
            security_group_ids=given["SecurityGroupIds"],
            tags=given.get("Tags"),
            kms_key_id=None,
            windows_configuration=None,
            lustre_configuration={**given["LustreConfiguration"], "MountName": MOUNT_NAME},
            ontap_configuration=None,
            open_zfs_configuration=None,
        )
        system.__class__ = cls
        return system

    @classmethod
    def delete_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str
    ) -> None:
        fsx_backends[account_id][region_name].file_systems.pop(resource_name, None)


class StackEgress(CloudFormationModel):
    """AWS::EC2::SecurityGroupEgress, for another group as the other side."""

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::EC2::SecurityGroupEgress"

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **kwargs: Any
    ) -> StackEgress:
        given = cloudformation_json["Properties"]
        ec2_backends[account_id][region_name].authorize_security_group_egress(
            given["GroupId"], given["IpProtocol"], None, None, [],
            source_groups=[{"GroupId": given["DestinationSecurityGroupId"]}],
        )  # fmt: skip
        return cls()

    @classmethod
    def delete_from_cloudformation_json(cls, *arguments: Any) -> None:
        """Goes with its group."""


def _release(ec2: Any, address: str) -> None:
    ec2.addresses[:] = [eip for eip in ec2.addresses if eip.public_ip != address]


def _delete_internet_gateway(ec2: Any, gateway: str) -> None:
    ec2.internet_gateways[gateway].vpc = None
    ec2.internet_gateways.pop(gateway)


def _delete_route_table(ec2: Any, table: str) -> None:
    ec2.route_tables[table]._associations.clear()
    ec2.delete_route_table(table)


def _delete_nat_gateway(ec2: Any, gateway: str) -> None:
    ec2.enis.pop(ec2.nat_gateways.pop(gateway)._eni.id)  # AWS takes its interface away with it


def _nothing(ec2: Any, resource: str) -> None:
    """Goes with what it belongs to."""


_DELETIONS: dict[type, Callable[[Any, str], None]] = {
    ElasticAddress: _release,
    InternetGateway: _delete_internet_gateway,
    NatGateway: _delete_nat_gateway,
    Route: _nothing,
    RouteTable: _delete_route_table,
    SecurityGroupIngress: _nothing,
    SubnetRouteTableAssociation: _nothing,
    VPCEndPoint: lambda ec2, endpoint: ec2.vpc_end_points.pop(endpoint),
    VPCGatewayAttachment: _nothing,
}


def _deletion(delete: Callable[[Any, str], None]) -> Any:
    def delete_from_cloudformation_json(
        cls: type, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str
    ) -> None:
        delete(ec2_backends[account_id][region_name], resource_name)

    return classmethod(delete_from_cloudformation_json)


for _resource, _delete in _DELETIONS.items():
    _resource.delete_from_cloudformation_json = _deletion(_delete)  # type: ignore[attr-defined]


def _update_with_conditions(update: Callable[..., None]) -> Callable[..., None]:
    """moto looks at conditions when a stack is made; here also when a parameter of it changes."""

    def patched(self: Any, template: dict[str, Any], parameters: dict[str, Any] | None = None) -> None:
        update(self, template, parameters)
        conditions = {name: json.get("Condition") for name, json in self._resource_json_map.items()}
        wanted = {name for name, condition in conditions.items() if not condition or self.lazy_condition_map[condition]}
        leaving = set(self._parsed_resources) & set(conditions) - wanted
        for _ in range(len(leaving) + 1):  # what hangs on others goes in a later pass
            for name in sorted(leaving):
                try:
                    self._delete_resource(self._parsed_resources[name], self._resource_json_map[name])
                except Exception:
                    continue
                del self._parsed_resources[name]
                leaving.remove(name)
        assert not leaving, leaving
        for name in wanted:
            _ = self[name]

    return patched


ResourceMap.update = _update_with_conditions(ResourceMap.update)  # type: ignore[method-assign]

# Quotas of SageMaker, by name.
QUOTAS = {"ml.c5.4xlarge for cluster usage": 1.0, "ml.trn1.32xlarge for cluster usage": 4.0}


def _list_service_quotas(self: ServiceQuotasResponse) -> str:
    return json.dumps({"Quotas": [{"QuotaName": name, "Value": value} for name, value in QUOTAS.items()]})


ServiceQuotasResponse.list_service_quotas = _list_service_quotas  # type: ignore[attr-defined]

# States and failure messages that a cluster goes through, one at each question; the last one stays.
SCENES: dict[str, list[tuple[str, str]]] = {}


def _describe_by_scene(describe: Callable[[Cluster], dict[str, Any]]) -> Callable[[Cluster], dict[str, Any]]:
    def patched(self: Cluster) -> dict[str, Any]:
        if scene := SCENES.get(self.cluster_name):
            self.status, self.failure_message = scene.pop(0) if len(scene) > 1 else scene[0]
        return describe(self)

    return patched


Cluster.describe = _describe_by_scene(Cluster.describe)  # type: ignore[method-assign]
