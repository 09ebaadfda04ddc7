"""`python -m postprocess.compare RUN_OR_SWEEP ...`: what the runs' methods save, as a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from launcher.cli import Parser, process_entry
from launcher.errors import TrntuneError, UsageError
from postprocess.compare.analysis import analyse
from postprocess.compare.collect import collect, is_sweep
from postprocess.compare.publish import publish
from postprocess.compare.runs import Collection

_DESCRIPTION = """\
Compare finished runs: full fine-tuning (FPFT) is the base, everything else a ratio to it.

Runs that differ only in the seed are repeats of one variant (median and range). Runs stand in one
ratio only when data, model, batch, length, precision, hardware and definitions agree; else each
set has its own table, and the report says what differs. Prints the report and writes report.md,
report.html, runs.csv and report.json.
"""
_EXAMPLES = """\
examples:
  python -m postprocess.compare outputs/sweeps/2026-01-31_12-00-00
  python -m postprocess.compare outputs/my_full_run outputs/my_lora_run --output report
  python -m postprocess.compare --mlflow fpft_vs_peft_small --tracking-uri sqlite:///outputs/mlflow.db

exit codes: 0 a report was made, 1 no finished run to compare or it cannot be read or written, 2 usage
"""


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code: 0, 1 nothing can be compared, 2 usage."""
    return process_entry(lambda given: _compare(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m postprocess.compare",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="RUN_OR_SWEEP", help="run directory, sweep, or a directory of runs"
    )
    parser.add_argument(
        "--mlflow", metavar="EXPERIMENT", help="read the finished runs of this MLflow experiment instead"
    )
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server or database (default: MLFLOW_TRACKING_URI, or outputs/mlflow.db)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the files go (default: SWEEP/report for one sweep, else report)",
    )
    parser.add_argument("--no-files", action="store_true", help="only print the report")
    arguments = parser.parse_args(argv)
    _check(arguments)
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    if arguments.mlflow is None and not arguments.paths:
        raise UsageError("nothing to compare: give run directories or sweeps, or --mlflow EXPERIMENT; see --help")
    if arguments.mlflow is not None and arguments.paths:
        raise UsageError("run directories and --mlflow cannot be given together: compare one or the other")
    if arguments.mlflow is None and arguments.tracking_uri is not None:
        raise UsageError("--tracking-uri belongs to --mlflow: add --mlflow EXPERIMENT")
    if arguments.no_files and arguments.output is not None:
        raise UsageError("--output and --no-files cannot be given together")


def _compare(arguments: argparse.Namespace) -> int:
    output = _output(arguments)
    if output is not None:
        from postprocess.compare.files import check_output

        check_output(output)
    report = analyse(_collector(arguments)())
    publish(report, output)
    if not report.groups:
        raise TrntuneError("no finished run to compare: finish a run first, or give other directories")
    return 0


def _output(arguments: argparse.Namespace) -> Path | None:
    """Where the files go; None: nowhere."""
    if arguments.no_files:
        return None
    if arguments.output is not None:
        return Path(arguments.output)
    single = len(arguments.paths) == 1 and is_sweep(arguments.paths[0])
    return Path(arguments.paths[0] if single else Path.cwd()) / "report"


def _collector(arguments: argparse.Namespace) -> Callable[[], Collection]:
    if arguments.mlflow is None:
        return lambda: collect(arguments.paths)
    from postprocess.compare.mlflow_runs import collect_experiment, tracking_uri

    return lambda: collect_experiment(arguments.mlflow, tracking_uri(arguments.tracking_uri))


if __name__ == "__main__":
    sys.exit(main())
