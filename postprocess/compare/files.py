"""Writing the report's files."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import TrntuneError, UsageError
from launcher.io import write_atomic
from launcher.paths import shown
from postprocess.compare.analysis import Report
from postprocess.compare.data import to_csv, to_json
from postprocess.compare.html import to_html
from postprocess.compare.markdown import to_markdown


def check_output(directory: Path) -> None:
    """Raise UsageError when ``directory`` can't be one: told before runs are read."""
    in_the_way = next((each for each in (directory, *directory.parents) if each.exists()), None)
    if in_the_way is not None and not in_the_way.is_dir():
        raise UsageError(f"{shown(in_the_way)}: is a file; give --output with a directory")


def write_report(report: Report, directory: Path) -> list[Path]:
    """Write all formats into ``directory`` and return the files, the page first.

    Raises TrntuneError when they can't be written.
    """
    # All are made before the first is written: a report that cannot be made leaves the former one whole.
    texts = {
        "report.html": to_html(report),
        "report.md": to_markdown(report),
        "runs.csv": to_csv(report),
        "report.json": to_json(report),
    }
    try:
        for name, text in texts.items():
            write_atomic(directory / name, text)
    except OSError as error:
        raise TrntuneError(f"{shown(directory)}: the report cannot be written: {error.strerror or error}") from error
    return [directory / name for name in texts]
