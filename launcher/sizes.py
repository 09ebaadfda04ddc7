"""Sizes of files as people write them: one reading for the configuration and for every command."""

from __future__ import annotations

import re

from launcher.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
# Small enough for any test, large enough for one row of any model.
MIN_BYTES = 1000
ADVICE = "write 5GB, 500MB or 2GiB"


def parse_size(text: str, name: str) -> int:
    """Bytes of 5GB, 500 mb, 2GiB, 1.5T or 4096: K, M, G and T are powers of 1000, with an i of 1024.

    Raises UsageError, with ``name`` as what was set, for what ``size_fault`` finds.
    """
    if fault := size_fault(text):
        raise UsageError(f"{name}={text}: {fault}: {ADVICE}")
    return _bytes(text) or 0


def size_fault(text: str) -> str | None:
    """Why a text is no size of a file; None where it is one."""
    size = _bytes(text)
    if size is None:
        return "is no size"
    return f"a file has at least {MIN_BYTES} bytes" if size < MIN_BYTES else None


def _bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        return None
    unit = 1024 if match[3] else 1000
    return int(float(match[1]) * unit ** " KMGT".index(match[2].upper() or " "))
