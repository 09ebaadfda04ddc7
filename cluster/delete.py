"""`python -m cluster delete confirm=true`: cluster, bucket, stack, logs; then what is left is counted."""

from __future__ import annotations

from cluster import bucket, hyperpod, remains, stack, standing
from cluster.aws import Aws, one_line
from cluster.deploy import take_down
from cluster.schema import SetupConfig
from cluster.waiting import Patience, say
from launcher.errors import FAILED, TrntuneError, UsageError

_LOST = "cluster, bucket, logs"


def run(config: SetupConfig) -> int:
    """Delete all, or all but the file system. Returns 0, or 1 when something is left. Raises TrntuneError."""
    if not config.confirm:
        raise UsageError(_what_is_lost(config))
    aws = Aws(config.region)
    say(f"account {aws.account()}, {config.region}")
    found = standing.look(aws, config.name)
    if not remains.everything(aws, config.name):
        if found.foreign:
            raise TrntuneError(f"{'; '.join(found.foreign)}: nothing was deleted")
        print(f"cluster {config.name}: there is nothing to delete in {config.region}")
        return 0
    if config.keep_fsx and found.own_stack is not None and found.own_stack.lost:
        raise TrntuneError(
            f"the stack {config.name} is {found.own_stack.status}: its file system can't be kept; nothing was deleted: "
            "without keep_fsx=true all of it is"
        )
    for line in found.foreign:
        say(f"left alone: {line}")
    try:
        _take_down(aws, config, found)
    except TrntuneError as error:
        raise TrntuneError("\n".join([str(error), *_left(aws, config, "put it right, then")])) from error
    except KeyboardInterrupt:
        for line in _left(aws, config, "go on"):
            say(line)
        raise
    return _report(aws, config)


def _take_down(aws: Aws, config: SetupConfig, found: standing.Standing) -> None:
    """What is ours, in the order in which it can go."""
    if found.own_cluster is not None:
        hyperpod.delete(aws, found.own_cluster, Patience.of(config))
    _delete_stack(aws, config, found.own_stack)
    for group in remains.own_log_groups(aws, config.name, found):
        with one_line():
            aws.client("logs").delete_log_group(logGroupName=group)
        say(f"log group {group}: deleted")


def _left(aws: Aws, config: SetupConfig, advice: str) -> list[str]:
    """What is there still, and how to go on."""
    listed = remains.listed(aws, config.name, "left, and perhaps paid:")
    return [*listed, f"{advice}: {take_down(config)}"] if listed else []


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


def _delete_stack(aws: Aws, config: SetupConfig, there: stack.Stack | None) -> None:
    """The bucket is emptied first: CloudFormation can't delete one with objects in it."""
    if there is not None and there.status.startswith("UPDATE_"):
        there = stack.settled(aws, there, Patience.of(config))
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
    left = stack.wait_for(aws, config.name, Patience.of(config))
    if left.has_compute:
        raise TrntuneError(stack.why(aws, left))


def _report(aws: Aws, config: SetupConfig) -> int:
    left = remains.everything(aws, config.name)
    if not left:
        print(f"cluster {config.name}: all is deleted, nothing is left")
        return 0
    kept = config.keep_fsx and all(remain.with_fsx for remain in left)
    print(f"cluster {config.name}: {'kept' if kept else 'left, and perhaps paid'}:")
    for remain in left:
        print(f"  {remain.line}")
    if kept:
        print("deploy takes the file system up again; delete without keep_fsx takes it away")
    return 0 if kept else FAILED
