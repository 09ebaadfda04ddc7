"""The command line: Hydra's own flags and overrides, with errors of one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from launcher.errors import UsageError, nearest

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class Parser(argparse.ArgumentParser):
    """argparse, but an error is raised rather than printed with the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]


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
