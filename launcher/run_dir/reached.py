"""How far training has come, from what it has written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from launcher.run_dir.layout import RunDir

_COMMITTED = re.compile(r"step-(\d+)")


def last_record(metrics: Path) -> dict[str, Any]:
    """The last whole `event=train` line of metrics.jsonl, or an empty one."""
    if not metrics.exists():
        return {}
    for line in reversed(metrics.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            record = json.loads(line)
        except ValueError:  # a crash cut it off
            continue
        if isinstance(record, dict) and record.get("event") == "train":
            return record
    return {}


def checkpoint_steps(root: Path) -> list[int]:
    """Steps that have a committed directory of checkpoints, whether or not its files are still whole; ascending."""
    if not root.is_dir():
        return []
    matches = (_COMMITTED.fullmatch(path.name) for path in root.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def furthest_step(run_dir: RunDir) -> int:
    """The last step that was finished, by any attempt. A line of metrics may stand for many steps (tracking.log_every):
    checkpoints between two lines are progress too."""
    recorded = int(last_record(run_dir.metrics).get("step", 0))
    return max([recorded, *checkpoint_steps(run_dir.checkpoints)])
