"""`python -m launcher status|wait|cancel|retry SWEEP`: following what was submitted to Slurm."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launcher.cli import Parser, process_entry
from launcher.errors import UsageError

_LONGEST = 86_400

_EPILOG = """\
SWEEP is the directory that launch.py printed: of a sweep, or of a single run.

exit codes: 0 done; wait: all runs succeeded. 1 wait: a run did not succeed; or Slurm refused. 2 usage
"""


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _run(_parse(given)), argv, "interrupted; the jobs go on")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launcher",
        description="Follow runs that were submitted to Slurm.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="how every run stands: state, step, loss, tokens/s, node, log")
    status.add_argument("--json", action="store_true", help="for other programs")
    waiting = commands.add_parser("wait", help="the same, live, until all have ended")
    waiting.add_argument(
        "--every", type=float, default=30.0, metavar="SECONDS", help="between two questions to Slurm (default: 30)"
    )
    commands.add_parser("cancel", help="cancel what has not ended")
    again = commands.add_parser("retry", help="submit again what did not finish, with the code as it is now")
    commands.add_parser("report", help="compare the runs of a sweep now, as its last job does")
    for command in commands.choices.values():
        command.add_argument("sweep", type=Path, metavar="SWEEP", help="directory of a sweep or a run")
    again.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, such as cluster.qos=high")
    arguments = parser.parse_args(argv)
    if not 1 <= getattr(arguments, "every", 1.0) <= _LONGEST:  # NaN is neither
        raise UsageError(f"--every {arguments.every:g}: 1 to {_LONGEST} seconds: Slurm serves others too")
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    from launcher.app import dispatch
    from launcher.executors.slurm import commands

    match arguments.command:
        case "status":
            return commands.status(arguments.sweep, arguments.json)
        case "wait":
            return commands.wait(arguments.sweep, arguments.every)
        case "cancel":
            return commands.cancel_all(arguments.sweep)
        case "retry":
            return dispatch(commands.retry(arguments.sweep, arguments.overrides))
        case _:
            return commands.report(arguments.sweep)


if __name__ == "__main__":
    sys.exit(main())
