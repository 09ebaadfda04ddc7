"""`python -m cluster delete confirm=true`: cluster, bucket, stack, logs; then what is left is counted."""

from __future__ import annotations

from cluster import bucket, hyperpod, remains, stack
from cluster.aws import Aws, one_line
from cluster.documents import TAG
from cluster.schema import SetupConfig
from cluster.waiting import Patience, say
from launcher.errors import TrntuneError, UsageError
from launcher.exit_codes import FAILED

_LOST = "cluster, bucket, logs"


def run(config: SetupConfig) -> int:
    """Delete all, or all but the file system. Returns 0, or 1 when something is left. Raises TrntuneError."""
    if not config.confirm:
        raise UsageError(_what_is_lost(config))
    aws = Aws(config.region)
    say(f"account {aws.account()}, {config.region}")
    there, cluster = stack.find(aws, config.name), hyperpod.find(aws, config.name)
    stack.refuse_foreign(there, config.name)
    _refuse_foreign(aws, config.name, cluster)
    if not remains.everything(aws, config.name):
        print(f"cluster {config.name}: there is nothing to delete in {config.region}")
        return 0
    if cluster is not None:
        hyperpod.delete(aws, cluster, Patience.of(config))
    _delete_stack(aws, config, there)
    for group in remains.log_groups(aws, config.name):
        with one_line():
            aws.client("logs").delete_log_group(logGroupName=group)
        say(f"log group {group}: deleted")
    return _report(aws, config)


def _what_is_lost(config: SetupConfig) -> str:
    if config.keep_fsx:
        return (
            f"delete takes away {_LOST} of {config.name} and keeps the file system, which is paid on: add confirm=true"
        )
    return (
        f"delete takes away {_LOST} of {config.name} and its file system with all that is on "
        f"{config.storage.mount_path} (models, checkpoints, results: lost for good): add confirm=true, and "
        "keep_fsx=true to keep the file system"
    )


def _refuse_foreign(aws: Aws, name: str, cluster: hyperpod.Cluster | None) -> None:
    """Raise TrntuneError when a cluster of this name was made by somebody else."""
    if cluster is not None and hyperpod.tags(aws, cluster).get(TAG) != name:
        raise TrntuneError(
            f"there is a cluster {name} that is not of python -m cluster (no tag {TAG}={name}): nothing was deleted"
        )


def _delete_stack(aws: Aws, config: SetupConfig, there: stack.Stack | None) -> None:
    """The bucket is emptied first: CloudFormation can't delete one with objects in it."""
    members = stack.members_of(aws, there.id) if there else []
    ours = {physical for member, physical, _ in members if member == "Bucket" and physical}
    for name in sorted({*ours, *bucket.of_cluster(aws, config.name)}):
        say(f"bucket {name}: {bucket.empty(aws, name)} versions of objects deleted")
    if there is not None and config.keep_fsx:
        _keep_file_system(aws, config, there)
    elif there is not None:
        stack.delete(aws, there, Patience.of(config))
    for name in set(bucket.of_cluster(aws, config.name)) - (ours if config.keep_fsx else set()):
        bucket.delete(aws, name)
        say(f"bucket {name}: deleted")


def _keep_file_system(aws: Aws, config: SetupConfig, there: stack.Stack) -> None:
    if not there.has_compute:
        say("stack: only the file system and its network are there already")
        return
    stack.set_compute(aws, there, False)
    stack.wait_for(aws, config.name, Patience.of(config))


def _report(aws: Aws, config: SetupConfig) -> int:
    left = remains.everything(aws, config.name)
    if not left:
        print(f"cluster {config.name}: all is deleted, nothing is left")
        return 0
    kept = config.keep_fsx and all(line.startswith(("stack", "file system", "network", "  ")) for line in left)
    print(f"cluster {config.name}: {'kept' if kept else 'left, and perhaps paid'}:")
    for line in left:
        print(f"  {line}")
    if kept:
        print("deploy takes the file system up again; delete without keep_fsx takes it away")
    return 0 if kept else FAILED
