"""The command line: Hydra's own flags and overrides, with errors of one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from launcher.config.secrets import redact
from launcher.errors import FAILED, INTERRUPTED, TrntuneError, UsageError, disk_fault, nearest

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class Parser(argparse.ArgumentParser):
    """argparse, but an error is raised rather than printed with the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]


def process_entry(work: Callable[[list[str]], int], argv: list[str] | None, interrupted: str = "interrupted") -> int:
    """The exit code of ``work`` on a command line, this process's own where ``argv`` is None. Whatever ends it early is
    told in one line."""
    try:
        code = work(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # where a reader that has gone is noticed here
        return code
    except TrntuneError as error:
        print(f"error: {redact(' '.join(str(error).split()))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `... | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        return FAILED


def build_parser() -> Parser:
    """Hydra's flags. Not Hydra's own parser: importing it takes longer than printing the help."""
    parser = Parser(prog="launch.py", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-name", "-cn", default="config")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--info", "-i", const="all", nargs="?", choices=INFO)
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    return parser


def parse_known_flags(parser: Parser, arguments: list[str]) -> argparse.Namespace:
    """What the parser reads. Raises UsageError for a flag that it doesn't have, with the nearest one."""
    known, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        flag = unknown[0].split("=")[0]
        near = nearest(flag, parser.flags())
        raise UsageError(f"unknown flag {flag}" + (f": did you mean {near}?" if near else "; see --help"))
    return known


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read argv; overrides may stand before and after flags. Raises UsageError."""
    parser = build_parser()
    known = parse_known_flags(parser, arguments)
    commands = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{name.replace('_', '-')}" for name in commands if getattr(known, name)]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} cannot be given together")
    if (known.resolve or known.package) and not known.cfg:
        raise UsageError("--resolve and --package belong to --cfg: add --cfg job")
    return known
