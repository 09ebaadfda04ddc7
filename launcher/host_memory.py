"""How much memory this machine has left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


def memory_available(groups: Path = GROUPS, own: Path = OWN) -> int:
    """Bytes that this process may still take: the machine's, or what its control groups, of version 1 or 2, or Slurm
    leave it. Page cache counts as taken in a control group, though it may be let go."""
    import psutil

    available = int(psutil.virtual_memory().available)
    job = os.environ.get("SLURM_MEM_PER_NODE", "")  # MB; 0: all of the node's
    asked = [int(job) << 20] if job.isdigit() and job != "0" else []
    return max(0, min([available, *_left(groups, own), *asked]))


def _left(groups: Path, own: Path) -> Iterator[int]:
    """Bytes that each control group above this process still has, where it has a limit."""
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = groups / "memory" if controllers else groups
        limit, used = V1 if controllers else V2
        directory = root / path.lstrip("/")
        # In a container the path is the host's, and the container's own group is the root.
        for group in (directory, *directory.parents):
            most, taken = _number(group / limit), _number(group / used)
            if group.is_relative_to(root) and most is not None and taken is not None:
                yield most - taken


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
