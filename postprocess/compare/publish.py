"""A report printed and written: `python -m postprocess.compare.publish SWEEP`, which the launcher starts at the end."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from launcher.cli import process_entry
from launcher.errors import TrntuneError
from launcher.paths import shown
from postprocess.compare.analysis import Report, analyse
from postprocess.compare.collect import collect
from postprocess.compare.terminal import print_report


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(_reported, argv)


def _reported(argv: list[str]) -> int:
    report_sweep_directory(Path(argv[0]))
    return 0


def report_sweep_directory(sweep_dir: Path) -> None:
    """Print the report of a sweep that has ended, and write it below the sweep. A failure is a warning."""
    try:
        report = analyse(collect([sweep_dir]))
        publish(report, sweep_dir / "report")
    except TrntuneError as error:  # the runs themselves are done and whole
        print(f"warning: no report: {error}", file=sys.stderr)


def publish(report: Report, directory: Path | None) -> None:
    """Write the report into ``directory``, if there is one and anything to compare, and print it."""
    console = Console(highlight=False)
    try:
        files = [] if directory is None or not report.groups else _write(report, directory)
    finally:  # a full disk doesn't cost the sight of the numbers, and `| head` doesn't cost the files
        print_report(console, report)
    if files:
        names = ", ".join(file.name for file in files[1:])
        console.print(escape(f"\nreport  {shown(files[0])} (beside it: {names})"), soft_wrap=True)


def _write(report: Report, directory: Path) -> list[Path]:
    from postprocess.compare.files import write_report  # matplotlib takes a second to import

    return write_report(report, directory)


if __name__ == "__main__":
    sys.exit(main())
