#!/usr/bin/env bash
# moto 5.2.5: list_cluster_nodes of a SageMaker HyperPod cluster gives its first page again for every NextToken.
#
# boto3's own paginator stops with an error, since the token that comes back is the one that was sent; a loop of one's own over
# NextToken sees the first nodes over and over. Whether a tool reads all pages has to be tested with botocore's Stubber.
#
# Seen:
#   3 nodes in pages of 2: first page [w-0, w-1], with its NextToken again [w-0, w-1]
# Exit code 0: still so. 1: the second page holds the third node, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'moto[sagemaker]==5.2.5' boto3==1.44.8
cat >"$work/pages.py" <<'PYTHON'
import sys
from importlib.metadata import version

import boto3
from moto import mock_aws

GROUP = {
    "InstanceGroupName": "w",
    "InstanceType": "ml.trn1.32xlarge",
    "InstanceCount": 3,
    "ExecutionRole": "arn:aws:iam::123456789012:role/example",
    "LifeCycleConfig": {"SourceS3Uri": "s3://sagemaker-example", "OnCreate": "on_create.sh"},
    "ThreadsPerCore": 1,
}


def identifiers(page):
    return [node["InstanceId"] for node in page["ClusterNodeSummaries"]]


print(f"moto {version('moto')}")
with mock_aws():
    client = boto3.client(
        "sagemaker", region_name="us-west-2", aws_access_key_id="example", aws_secret_access_key="example"
    )
    client.create_cluster(ClusterName="example", InstanceGroups=[GROUP])
    first = client.list_cluster_nodes(ClusterName="example", MaxResults=2)
    second = client.list_cluster_nodes(ClusterName="example", MaxResults=2, NextToken=first["NextToken"])
one, two = identifiers(first), identifiers(second)
print(f"3 nodes in pages of 2: first page [{', '.join(one)}], with its NextToken again [{', '.join(two)}]")
sys.exit(0 if one == two else 1)
PYTHON
"$work/venv/bin/python" "$work/pages.py"
