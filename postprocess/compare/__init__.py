"""The comparison of runs: collect -> group -> analyse -> render -> publish. It reads only what runs left behind."""

from __future__ import annotations

from pathlib import Path


def report_sweep_directory(sweep_dir: Path) -> None:
    """Print the report of a sweep that has ended, and write it below the sweep. A failure is a warning."""
    from postprocess.compare.publish import report_sweep_directory as report  # rich, yaml

    report(sweep_dir)
