"""The CloudFormation template: AWS's own schemas by cfn-lint, and its security as it is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.files import TEMPLATE, template
from launcher.paths import ROOT


class Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms: !Ref X is {"Ref": X}, !Sub X is {"Fn::Sub": X}."""


def _short_form(loader: Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    return {name: loader.construct_mapping(node, deep=True)}


Loader.add_multi_constructor("!", _short_form)
PARSED = yaml.load(template(), Loader)
RESOURCES = PARSED["Resources"]


def of_type(kind: str) -> dict[str, dict[str, Any]]:
    return {name: found["Properties"] for name, found in RESOURCES.items() if found["Type"] == kind}


@pytest.mark.parametrize("region", ["us-west-2", "us-east-1"])
def test_cfn_lint_finds_nothing(region):
    program = Path(sys.executable).with_name("cfn-lint")
    command = [str(program), "--regions", region, "--non-zero-exit-code", "informational", "--", str(TEMPLATE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_the_bucket_is_private_encrypted_and_owned():
    (bucket,) = of_type("AWS::S3::Bucket").values()
    assert bucket["PublicAccessBlockConfiguration"] == {
        "BlockPublicAcls": True, "BlockPublicPolicy": True, "IgnorePublicAcls": True, "RestrictPublicBuckets": True
    }  # fmt: skip
    (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}


def test_the_bucket_takes_nothing_without_tls():
    (policy,) = of_type("AWS::S3::BucketPolicy").values()
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert statement["Resource"] == [{"Fn::GetAtt": "Bucket.Arn"}, {"Fn::Sub": "${Bucket.Arn}/*"}]


def test_the_buckets_name_begins_as_the_managed_policy_wants_and_ends_with_the_stacks_id():
    (bucket,) = of_type("AWS::S3::Bucket").values()
    first, name, end = bucket["BucketName"]["Fn::Join"][1]
    assert (first, name) == ("sagemaker", {"Ref": "ClusterName"})
    assert "AWS::StackId" in str(end)


def test_the_security_group_lets_only_itself_in_and_beside_itself_only_https_out():
    (group,) = of_type("AWS::EC2::SecurityGroup").values()
    assert "SecurityGroupIngress" not in group
    (https,) = group["SecurityGroupEgress"]
    assert (https["IpProtocol"], https["FromPort"], https["ToPort"]) == ("tcp", 443, 443)
    itself = {"Fn::GetAtt": "SecurityGroup.GroupId"}
    (inward,) = of_type("AWS::EC2::SecurityGroupIngress").values()
    (outward,) = of_type("AWS::EC2::SecurityGroupEgress").values()
    assert (inward["GroupId"], inward["SourceSecurityGroupId"], inward["IpProtocol"]) == (itself, itself, "-1")
    assert (outward["GroupId"], outward["DestinationSecurityGroupId"], outward["IpProtocol"]) == (itself, itself, "-1")
    assert not [key for key in inward if key.startswith("Cidr")]


def test_the_role_is_sagemakers_with_one_managed_policy_and_no_wildcard_action():
    (role,) = of_type("AWS::IAM::Role").values()
    (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    (managed,) = role["ManagedPolicyArns"]
    assert managed["Fn::Sub"].endswith(":iam::aws:policy/AmazonSageMakerClusterInstanceRolePolicy")
    statements = [s for policy in role["Policies"] for s in policy["PolicyDocument"]["Statement"]]
    actions = [a for s in statements for a in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])]
    assert {s["Effect"] for s in statements} == {"Allow"}
    assert [action for action in actions if "*" in action] == []
    assert {action.partition(":")[0] for action in actions} == {"ec2", "fsx"}
    assert "fsx:DescribeFileSystems" in actions
    assert "RoleName" not in role  # a second stack in the account would collide


def test_routes_to_the_internet_wait_for_the_gateway():
    assert RESOURCES["PublicRoute"]["DependsOn"] == "GatewayAttachment"
    assert RESOURCES["NatAddress"]["DependsOn"] == "GatewayAttachment"


def test_what_the_file_system_hangs_in_stays_without_compute():
    """Otherwise keep_fsx=true could not take the rest away, or would take too much."""
    staying = {name for name, found in RESOURCES.items() if "Condition" not in found}
    assert staying == {"Vpc", "PrivateSubnet", "SecurityGroup", "FromItself", "ToItself", "FileSystem"}

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            named = {value["Ref"]} if "Ref" in value else set()
            named |= {value["Fn::GetAtt"].partition(".")[0]} if "Fn::GetAtt" in value else set()
            return named.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    for name in staying:
        assert references(RESOURCES[name]["Properties"]) & set(RESOURCES) <= staying, name


def test_one_private_subnet_holds_everything():
    (system,) = of_type("AWS::FSx::FileSystem").values()
    assert system["SubnetIds"] == [{"Ref": "PrivateSubnet"}]
    assert PARSED["Outputs"]["SubnetId"]["Value"] == {"Ref": "PrivateSubnet"}
    subnets = of_type("AWS::EC2::Subnet").values()
    assert all(subnet["MapPublicIpOnLaunch"] is False for subnet in subnets)
    assert {str(subnet["AvailabilityZoneId"]) for subnet in subnets} == {"{'Ref': 'AvailabilityZoneId'}"}
