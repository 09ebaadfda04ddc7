"""How much memory this machine has left."""

from __future__ import annotations

from pathlib import Path


def memory_available() -> int:
    """Bytes that this process may still take: the machine's, or what its control group leaves it."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no control groups of version 2
        pass
    return available
