"""`python -m cluster deploy confirm=true`: stack, scripts, cluster; each only where it is absent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster import bucket, hyperpod, remains, stack, standing, validate
from cluster.aws import Aws
from cluster.cost import lines
from cluster.documents import Resources, request
from cluster.files import PREFIX
from cluster.findings import LATER, OK, PROBLEM, Finding
from cluster.schema import SetupConfig
from cluster.waiting import Patience, say
from launcher.errors import TrntuneError, UsageError


def run(config: SetupConfig) -> int:
    """Validate, then make what is absent, and wait for it. Returns 0. Raises TrntuneError with what went wrong."""
    if not config.confirm:
        raise UsageError(
            f"deploy makes a cluster that is paid by the hour ({lines(config)[0]}): look at plan and validate, then "
            "add confirm=true"
        )
    aws = Aws(config.region)
    account = aws.account()
    say(f"account {account}, {config.region}")
    found = standing.look(aws, config.name)
    config = stack.with_zone_of(found.own_stack, config)
    _check_problems(validate.online(aws, config, found))
    # What may hold results by now is not to go with a command that was copied from an error.
    kept = found.own_stack is not None and found.own_stack.good
    cluster = _make(aws, replace(config, keep_fsx=kept), account)
    print(f"cluster {cluster.name} is {cluster.status}: {cluster.arn}")
    print(f"log in: python -m cluster ssh name={config.name} region={config.region}")
    print(f"take it down, with its file system: {take_down(replace(config, keep_fsx=False))}")
    return 0


def take_down(config: SetupConfig) -> str:
    """The command that does."""
    keep = " keep_fsx=true" if config.keep_fsx else ""
    return f"python -m cluster delete name={config.name} region={config.region} confirm=true{keep}"


def _make(aws: Aws, config: SetupConfig, account: str) -> hyperpod.Cluster:
    """Stack and cluster. However it ends early, what is there by then is paid, and the way to end that is named."""
    paid = f"what is there is paid until it is taken down: {take_down(config)}"
    try:
        return ensure_cluster(aws, config, stack.resources(stack.ensure(aws, config)), account)
    except TrntuneError as error:
        raise TrntuneError(f"{error}\n{paid}") from error
    except KeyboardInterrupt:
        for line in [*remains.listed(aws, config.name, "there so far:"), paid]:
            say(line)
        raise


def _check_problems(findings: list[Finding]) -> None:
    """Say what isn't well; raise TrntuneError when something can't work."""
    for finding in findings:
        if finding.state not in (OK, PROBLEM, LATER):
            say(f"{finding.state}: {finding}")
    problems = [str(finding) for finding in findings if finding.state == PROBLEM]
    if problems:
        raise TrntuneError("\n".join(["nothing was created:", *(f"  {line}" for line in problems)]))


def ensure_cluster(aws: Aws, config: SetupConfig, wanted: Resources, account: str) -> hyperpod.Cluster:
    """The cluster in service: made if absent, with its scripts. Raises TrntuneError if another one is there."""
    document = request(config, wanted)
    cluster = hyperpod.find(aws, config.name)
    if cluster is not None:
        _check_differences(cluster, standing.differences(aws, config, wanted, cluster))
    _upload(aws, config, wanted, account)
    if cluster is None:
        say(f"cluster {config.name}: asking for {_size(document)}")
        hyperpod.create(aws, document)
    else:
        say(f"cluster {config.name}: is there already")
    return hyperpod.wait_for(aws, config.name, Patience.of(config))


def _size(document: dict[str, Any]) -> str:
    return ", ".join(f"{group['InstanceCount']} x {group['InstanceType']}" for group in document["InstanceGroups"])


def _check_differences(cluster: hyperpod.Cluster, different: list[str]) -> None:
    """Raise TrntuneError when the cluster that is there isn't the one that is wanted. It is never changed."""
    if different:
        remedy = "give the values that it has, or delete it first; deploy changes no cluster"
        raise TrntuneError(
            "\n".join([f"the cluster {cluster.name} is another one ({remedy}):", *(f"  {line}" for line in different)])
        )


def _upload(aws: Aws, config: SetupConfig, wanted: Resources, account: str) -> None:
    files = bucket.contents(config, wanted)
    if files:
        changed = bucket.upload(aws, wanted.bucket, files, account)
        listed = ", ".join(key.removeprefix(f"{PREFIX}/") for key in changed)
        say(f"bucket {wanted.bucket}: " + (f"uploaded {listed}" if changed else f"all {len(files)} files are there"))
