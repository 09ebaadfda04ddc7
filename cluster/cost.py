"""What a cluster costs for each hour that it exists, idle or not, as far as prices were given."""

from __future__ import annotations

from dataclasses import dataclass

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
