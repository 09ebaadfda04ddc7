"""Where the project's own files are: beside launch.py in a checkout, in site-packages when installed."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
# A tree of its own, of `python -m cluster`: no group of a run.
CLUSTER_SETUP = CONF / "cluster_setup"


def shown(path: Path) -> str:
    """``path`` as a person would type it: relative to the working directory where it lies below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
