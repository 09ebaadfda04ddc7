"""Whether the disk has room for a model."""

from __future__ import annotations

import shutil
from pathlib import Path

from launcher.errors import TrntuneError
from postprocess.staged import is_leftover, work_of


def check_room(out: Path, needed: int, what: str = "the merged model") -> None:
    """Raise TrntuneError unless the disk of ``out`` has ``needed`` bytes free, what a killed process left there counted
    in. ``what`` needs them."""
    place = out.parent
    while not place.exists():
        place = place.parent
    leftover = work_of(out)
    reusable = sum(file.stat().st_blocks * 512 for file in leftover.rglob("*")) if is_leftover(leftover) else 0
    free = shutil.disk_usage(place).free + reusable
    if free < needed:
        raise TrntuneError(f"{out}: {what} needs {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there")
