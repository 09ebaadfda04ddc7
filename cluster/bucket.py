"""The bucket with the lifecycle scripts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.aws import Aws, error_code, one_line
from cluster.documents import PARAMETERS, SETTINGS, TAG, Resources, parameters, settings
from cluster.files import PREFIX, scripts
from cluster.schema import API, SetupConfig
from launcher.errors import TrntuneError
from launcher.paths import shown


def contents(config: SetupConfig, resources: Resources) -> dict[str, bytes]:
    """Key and content of every object that belongs into the bucket; none in API mode."""
    if config.mode == API:
        return {}
    files: dict[str, bytes] = {name: Path(path).read_bytes() for name, path in scripts(config).items()}
    document = parameters(config, resources)
    files[PARAMETERS] = (json.dumps(document, indent=2) + "\n").encode()
    if config.lifecycle.directory is None:
        files[SETTINGS] = settings(config).encode()
    return {f"{PREFIX}/{name}": content for name, content in sorted(files.items())}


def left_here(config: SetupConfig) -> list[str]:
    """A line for a document of the user's own in their directory of scripts: the one of the configuration goes up."""
    own = None if config.mode == API else scripts(config).get(PARAMETERS)
    return [] if own is None else [f"{shown(own)} is not uploaded: the configuration makes that document"]


def upload(aws: Aws, bucket: str, files: Mapping[str, bytes], account: str) -> list[str]:
    """Upload what is absent or different. Returns the keys that were.

    ``account``: whose bucket it must be, so that nothing goes to somebody who has a bucket of that name.
    """
    s3 = aws.client("s3")
    changed = []
    for key, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        if _digest_there(s3, bucket, key, account) == digest:
            continue
        with one_line():
            s3.put_object(
                Bucket=bucket, Key=key, Body=content, Metadata={"sha256": digest}, ExpectedBucketOwner=account
            )
        changed.append(key)
    return changed


def _digest_there(s3: Any, bucket: str, key: str, account: str) -> str | None:
    from botocore.exceptions import ClientError

    with one_line():
        try:
            head = s3.head_object(Bucket=bucket, Key=key, ExpectedBucketOwner=account)
        except ClientError as error:
            if error_code(error) in ("404", "NoSuchKey"):
                return None
            raise
    return str(head["Metadata"].get("sha256"))


def read(aws: Aws, bucket: str, key: str) -> bytes | None:
    """An object's content; None where there is none."""
    from botocore.exceptions import ClientError

    with one_line():
        try:
            content: bytes = aws.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error_code(error) in ("404", "NoSuchKey", "NoSuchBucket"):
                return None
            raise
    return content


def of_cluster(aws: Aws, name: str) -> list[str]:
    """Buckets that the stacks of this cluster have made, this one's or an earlier one's.

    A name alone proves nothing: sagemaker-<region>-<account> is SageMaker's own. The template's tag does. S3 lists
    those of all regions: another one's belongs to the cluster of the same name there.
    """
    with one_line():
        listed = aws.client("s3").list_buckets().get("Buckets") or []
    pattern = re.compile(rf"sagemaker-{re.escape(name)}-[0-9a-f]{{12}}")
    likely = [bucket["Name"] for bucket in listed if pattern.fullmatch(bucket["Name"])]
    return [found for found in likely if _region(aws, found) == aws.region and _tags(aws, found).get(TAG) == name]


def _region(aws: Aws, bucket: str) -> str | None:
    """Where it is; None when it has gone meanwhile."""
    answer = _ask(aws, "get_bucket_location", bucket)
    return None if answer is None else str(answer.get("LocationConstraint") or "us-east-1")  # its word for that is null


def _tags(aws: Aws, bucket: str) -> dict[str, str]:
    answer = _ask(aws, "get_bucket_tagging", bucket)
    return {} if answer is None else {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}


def _ask(aws: Aws, operation: str, bucket: str) -> dict[str, Any] | None:
    """What S3 says of a bucket; None where there is nothing to say."""
    from botocore.exceptions import ClientError

    with one_line():
        try:
            answer: dict[str, Any] = getattr(aws.client("s3"), operation)(Bucket=bucket)
        except ClientError as error:
            if error_code(error) in ("NoSuchTagSet", "NoSuchBucket"):
                return None
            raise
    return answer


def empty(aws: Aws, bucket: str) -> int:
    """Delete every version of every object. Returns how many. CloudFormation doesn't delete a bucket that has any."""
    from botocore.exceptions import ClientError

    s3, count = aws.client("s3"), 0
    with one_line():
        try:
            for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
                found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
                objects = [{"Key": version["Key"], "VersionId": version["VersionId"]} for version in found]
                refused = (
                    s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True}) if objects else {}
                )
                if errors := refused.get("Errors"):
                    raise TrntuneError(f"{bucket}: {errors[0]['Key']} could not be deleted: {errors[0]['Message']}")
                count += len(objects)
        except ClientError as error:
            if error_code(error) != "NoSuchBucket":
                raise
    return count


def delete(aws: Aws, bucket: str) -> None:
    """Delete an empty bucket that its stack has left behind."""
    with one_line():
        aws.client("s3").delete_bucket(Bucket=bucket)
