"""What a cluster costs for each hour that it exists, idle or not, as far as prices were given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.schema import GroupConfig, SetupConfig, groups
from launcher.units import dollars

# What is billed beside instances, and isn't in the sum.
REST = "NAT gateway, file system, volumes and data transfer are billed beside that"


@dataclass(frozen=True)
class Cost:
    """US dollars an hour of all instances; None where a price is missing."""

    usd_per_hour: float | None
    priced: tuple[str, ...]
    unpriced: tuple[str, ...]
    """configuration keys of the groups without a price"""


def cost(config: SetupConfig) -> Cost:
    """Of all instances."""
    keys = {"controller": config.controller, "workers": config.workers, "login": config.login}
    used = {key: group for key, group in keys.items() if group in groups(config)}
    unpriced = tuple(key for key, group in used.items() if group.price_usd_per_hour is None)
    total = sum(group.count * (group.price_usd_per_hour or 0) for group in used.values())
    priced = tuple(_line(group) for group in used.values() if group.price_usd_per_hour is not None)
    return Cost(None if unpriced else total, priced, unpriced)


def running(config: SetupConfig, instances: Mapping[str, int]) -> Cost:
    """Of the instances that there are, by type, whatever the configuration asks for.

    A type without a price is named itself: the configuration may not have it.
    """
    priced = {
        group.instance_type: group
        for group in (config.controller, config.workers, config.login)
        if group.price_usd_per_hour is not None
    }
    used = {kind: count for kind, count in sorted(instances.items()) if count}
    unpriced = tuple(kind for kind in used if kind not in priced)
    total = sum(count * (priced[kind].price_usd_per_hour or 0) for kind, count in used.items() if kind in priced)
    listed = tuple(_line(replace(priced[kind], count=count)) for kind, count in used.items() if kind in priced)
    return Cost(None if unpriced else total, listed, unpriced)


def running_lines(config: SetupConfig, instances: Mapping[str, int]) -> list[str]:
    """That in words."""
    if not any(instances.values()):
        return ["no instance", REST]
    found = running(config, instances)
    if found.usd_per_hour is not None:
        return [f"{dollars(found.usd_per_hour)} an hour: {'; '.join(found.priced)}", REST]
    return [f"not known: no price of {' and '.join(found.unpriced)} is configured; {REST}"]


def _line(group: GroupConfig) -> str:
    each = dollars(group.price_usd_per_hour)
    return f"{group.count} x {group.instance_type} at {each} ({group.price_source}, {group.price_date})"


def lines(config: SetupConfig) -> list[str]:
    """The cost in words."""
    found = cost(config)
    if found.usd_per_hour is not None:
        return [f"{dollars(found.usd_per_hour)} an hour: {'; '.join(found.priced)}", REST]
    missing = " and ".join(f"{key}.price_usd_per_hour" for key in found.unpriced)
    return [f"not known: give {missing}, with price_source and price_date; {REST}"]
