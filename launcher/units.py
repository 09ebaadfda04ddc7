"""Numbers as people read them. What was not measured is a dash."""

from __future__ import annotations

from collections.abc import Mapping

DASH = "-"


def count(value: float | None) -> str:
    """1,234."""
    return DASH if value is None else f"{value:,.0f}"


def decimal(value: float | None, digits: int = 2) -> str:
    """1,234.50."""
    return DASH if value is None else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    """0.0034 as 0.34 %."""
    return DASH if value is None else f"{value:.2%}".replace("%", " %")


def shares(parts: Mapping[str, float], most: int = 8) -> str:
    """Named shares, such as 'category' 1.20 %, 'id' 0.30 %."""
    listed = [f"{name!r} {share(value)}" for name, value in parts.items()]
    return ", ".join([*listed[:most], *(["..."] if len(listed) > most else [])])


def seconds(value: float | None) -> str:
    """Seconds, with minutes from two of them on."""
    if value is None:
        return DASH
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def gigabytes(value: float | None) -> str:
    """Bytes as GB (10^9)."""
    return DASH if value is None else f"{value / 1e9:.2f} GB"


def dollars(value: float | None) -> str:
    """US dollars."""
    return DASH if value is None else f"{value:,.2f} USD"


def ratio(value: float | None, base: float | None) -> str:
    """``value`` over ``base``, as 1.70x."""
    if value is None or not base:
        return DASH
    quotient = value / base
    return f"{quotient:.2f}x" if quotient >= 0.01 else f"{quotient:.2g}x"
