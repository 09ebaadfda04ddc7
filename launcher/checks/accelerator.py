"""The price of an accelerator is reported with its source and date, or not at all."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Any

from launcher.checks.diagnostic import Diagnostic
from launcher.config.schema import Config


def check_price(config: Config) -> Iterator[Diagnostic]:
    """A price is reported with its source and date, or not at all."""
    yield from price_problems("accelerator", config.accelerator)


def price_problems(group: str, priced: Any) -> Iterator[Diagnostic]:
    """The same for any group with the three keys of a price."""
    names = ("price_usd_per_hour", "price_source", "price_date")
    values = {name: getattr(priced, name) for name in names}
    if any(value is not None for value in values.values()):
        for name, value in values.items():
            if value is None or value == "":
                yield Diagnostic(f"{group}.{name}", value, "a price needs all of " + ", ".join(names), "give it too")
    date = priced.price_date
    if date and not is_date(date):
        yield Diagnostic(f"{group}.price_date", date, "is not a date YYYY-MM-DD", "for example 2025-11-23")


def is_date(text: str) -> bool:
    """True for a day that exists, written YYYY-MM-DD."""
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        return False
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True
