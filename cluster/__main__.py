"""`python -m cluster plan|validate|deploy|status|ssh|delete|env`: the HyperPod cluster itself."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from launcher.cli import Parser, parse_known_flags
from launcher.config.overrides import check_arguments
from launcher.config.secrets import redact
from launcher.errors import FAILED, INTERRUPTED, TrntuneError, UsageError, nearest

COMMANDS = ("plan", "validate", "deploy", "status", "ssh", "delete", "env")


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    try:
        return _run(_parse(sys.argv[1:] if argv is None else argv))
    except TrntuneError as error:
        for number, line in enumerate(str(error).splitlines()):
            print(("error: " if number == 0 else "") + redact(line), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; what AWS has begun goes on: the same command takes it up", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `... | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not error.filename:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return FAILED


def _parse(argv: list[str]) -> argparse.Namespace:
    check_arguments(argv)
    parser = Parser(prog="python -m cluster", add_help=False, allow_abbrev=False)
    parser.add_argument("command", nargs="?")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", action="store_true")
    parser.add_argument("--config-name", "-cn", default="config")
    parser.add_argument("--config-dir", "-cd")
    arguments = parse_known_flags(parser, argv)
    if arguments.help or (arguments.command is None and not argv):
        return arguments
    if arguments.command not in COMMANDS:
        given = arguments.command or "no command"
        near = nearest(given, COMMANDS)
        raise UsageError(
            f"{given}: give one of {', '.join(COMMANDS)}" + (f"; did you mean {near}?" if near else " first")
        )
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    if arguments.help or arguments.command is None:
        from cluster.helptext import help_text

        print(help_text(), end="")
        return 0
    from cluster.checks import check_problems, check_secrets
    from cluster.compose import as_yaml, compose

    if arguments.cfg:
        print(as_yaml(arguments.overrides, arguments.config_name, arguments.config_dir), end="")
        return 0
    check = check_secrets if arguments.command == "validate" else check_problems  # which lists all that is wrong
    config = compose(arguments.overrides, arguments.config_name, arguments.config_dir, check)
    code: int = importlib.import_module(f"cluster.{arguments.command}").run(config)
    return code


if __name__ == "__main__":
    sys.exit(main())
