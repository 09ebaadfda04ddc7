"""What in a configuration can't work whatever AWS says: pure functions from it to problems."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.files import scripts_directory
from cluster.schema import SCRIPTS, GroupConfig, SetupConfig, groups, has_neuron
from launcher.checks.accelerator import price_problems
from launcher.checks.diagnostic import Diagnostic
from launcher.checks.validate import check_tokens, check_values, refuse
from launcher.errors import nearest
from launcher.paths import shown
from launcher.run_dir.create import blocked

# A bucket's name is at most 63 characters: sagemaker-<name>-<12 of the stack's id>. Capitals aren't allowed in it.
_NAME = r"[a-z0-9](-*[a-z0-9]){0,39}"
# https://docs.aws.amazon.com/fsx/latest/LustreGuide: SSD storage of a persistent file system of the second generation.
_THROUGHPUTS = (125, 250, 500, 1000)

Check = Callable[[SetupConfig], Iterator[Diagnostic]]


def check_names(config: SetupConfig) -> Iterator[Diagnostic]:
    """Names can be those of the things that they become."""
    if not re.fullmatch(_NAME, config.name):
        why = "must be 1 to 40 small letters, digits and single hyphens inside: a bucket's name is made of it"
        yield Diagnostic("name", config.name or "''", why)
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", config.region):
        yield Diagnostic("region", config.region, "is not the name of a region", "such as us-west-2")
    zone = config.network.availability_zone_id
    if zone is not None and not re.fullmatch(r"[a-z0-9]+-az\d+", zone):
        why = "is not the id of a zone, which is the same place in every account"
        yield Diagnostic(
            "network.availability_zone_id", zone, why, "such as usw2-az4; a name such as us-west-2a is not"
        )


def _named(config: SetupConfig) -> list[tuple[str, GroupConfig]]:
    return [
        (key, group) for key in ("controller", "workers", "login") if (group := getattr(config, key)) in groups(config)
    ]


def check_groups(config: SetupConfig) -> Iterator[Diagnostic]:
    """Instance groups have names of their own, and as many instances as they can."""
    seen: dict[str, str] = {}
    for key, group in _named(config):
        if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", group.name):
            yield Diagnostic(f"{key}.name", group.name, "must be at most 63 letters, digits and single hyphens inside")
        if group.name in seen:
            yield Diagnostic(f"{key}.name", group.name, f"is {seen[group.name]}.name, too", "give each group its own")
        seen[group.name] = key
        if not group.instance_type.startswith("ml."):
            remedy = f"write ml.{group.instance_type}"
            yield Diagnostic(f"{key}.instance_type", group.instance_type, "SageMaker's types begin with ml.", remedy)
        yield from price_problems(key, group)
    workers = config.workers
    if workers.count and workers.instance_type.startswith("ml.") and not has_neuron(workers.instance_type):
        why = "has no Neuron device to train on: Trainium's types begin with ml.trn"
        yield Diagnostic("workers.instance_type", workers.instance_type, why, "such as ml.trn1.32xlarge")
    if config.controller.count != 1:
        yield Diagnostic("controller.count", config.controller.count, "there is one controller", "controller.count=1")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", config.workers.partition):
        why = "must be at most 64 letters, digits, hyphens, dots and underscores"
        yield Diagnostic("workers.partition", config.workers.partition or "''", why)


def check_network(config: SetupConfig) -> Iterator[Diagnostic]:
    """Subnets lie inside the VPC and don't overlap."""
    networks: dict[str, ipaddress.IPv4Network] = {}
    for name in ("vpc_cidr", "private_cidr", "public_cidr"):
        value = getattr(config.network, name)
        try:
            networks[name] = ipaddress.IPv4Network(value)
        except ValueError as error:
            yield Diagnostic(f"network.{name}", value, f"is not a range of addresses ({error})", "such as 10.0.0.0/16")
            continue
        if not 16 <= networks[name].prefixlen <= 28:
            yield Diagnostic(f"network.{name}", value, "AWS takes /16 to /28")
    if len(networks) < 3:
        return
    vpc, private, public = networks.values()
    for name, subnet in (("private_cidr", private), ("public_cidr", public)):
        if not subnet.subnet_of(vpc):
            yield Diagnostic(f"network.{name}", subnet, f"is not inside network.vpc_cidr={vpc}")
    if private.overlaps(public):
        yield Diagnostic("network.public_cidr", public, f"overlaps network.private_cidr={private}")


def check_storage(config: SetupConfig) -> Iterator[Diagnostic]:
    """The file system is one that FSx makes."""
    storage = config.storage
    size = storage.capacity_gib
    if size != 1200 and size % 2400:
        remedy = f"nearest is {max(1200, round(size / 2400) * 2400)}"
        yield Diagnostic("storage.capacity_gib", size, "must be 1200 or a multiple of 2400", remedy)
    if storage.throughput not in _THROUGHPUTS:
        why = f"must be one of {', '.join(map(str, _THROUGHPUTS))}"
        remedy = f"nearest is {min(_THROUGHPUTS, key=lambda allowed: abs(allowed - storage.throughput))}"
        yield Diagnostic("storage.throughput", storage.throughput, why, remedy)
    for key, path in (
        ("storage.mount_path", storage.mount_path),
        ("environment.directory", config.environment.directory),
    ):
        if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", path) or ".." in path.split("/"):
            yield Diagnostic(key, path or "''", "is not an absolute path of plain names", "such as /fsx")


def check_scripts(config: SetupConfig) -> Iterator[Diagnostic]:
    """The lifecycle scripts are there, and the one that is started is among them."""
    directory, entry = scripts_directory(config), config.lifecycle.entry
    if not directory.is_dir():
        yield Diagnostic("lifecycle.directory", config.lifecycle.directory, "no such directory")
        return
    if config.mode == SCRIPTS and not (directory / entry).is_file():
        there = sorted(path.name for path in directory.iterdir() if path.is_file())
        near = nearest(entry, there)
        why = f"there is no such file in {shown(directory)}"
        yield Diagnostic("lifecycle.entry", entry, why, f"did you mean {near}?" if near else "")


def check_output(config: SetupConfig) -> Iterator[Diagnostic]:
    """What plan writes goes into a directory of its own."""
    if config.output is None:
        return
    path, remedy = Path(config.output).expanduser(), "give a new directory"
    try:
        if config.output == "" or (os.path.lexists(path) and (not path.is_dir() or any(path.iterdir()))):
            yield Diagnostic(
                "output", config.output or "''", "is there already" if config.output else "is empty", remedy
            )
        elif why := blocked(path.absolute()):
            yield Diagnostic("output", config.output, f"cannot be made: {why}", remedy)
    except OSError as error:  # a name that is too long, a directory that may not be looked into
        yield Diagnostic("output", config.output, f"cannot be made: {error.strerror}", remedy)


CHECKS: tuple[Check, ...] = (check_names, check_groups, check_network, check_storage, check_scripts, check_output)


def problems(config: SetupConfig) -> list[Diagnostic]:
    """Everything that is wrong, beside access tokens. A key that is past its limit is told of once."""
    limits = list(check_values(config))
    told = {limit.key for limit in limits}
    return [*limits, *(found for check in CHECKS for found in check(config) if found.key not in told)]


def check_problems(config: SetupConfig) -> None:
    """Raise UsageError with the first problem, and how many more there are."""
    check_secrets(config)
    refuse(problems(config))


def check_secrets(config: SetupConfig) -> None:
    """Raise UsageError for an access token, which must be in no message of another problem."""
    refuse(list(check_tokens(config)))
