"""`python -m postprocess.convert IN OUT`: a model directory of safetensors, of one that isn't."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launcher.cli import Parser, process_entry
from launcher.errors import first
from launcher.paths import shown
from launcher.sizes import parse_size
from launcher.units import gigabytes

_DESCRIPTION = """\
Write a base anew as safetensors: one of pytorch_model.bin, of its shards, or of safetensors shards
whose index is lost.

Pickles are read by torch's weights_only, which runs nothing that is in them. Dtypes stay. What the
model has under two names (a head that is the embedding) is written once where both are equal. OUT
appears when every tensor of it was read again and has the bytes of its original.
"""
_EXAMPLES = """\
examples:
  python -m postprocess.convert ~/models/opt-125m ~/models/opt-125m-safetensors
  python launch.py model=local model.path=~/models/opt-125m-safetensors

exit codes: 0 OUT is there, 1 it can't be converted, 2 usage
"""


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _convert(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m postprocess.convert",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", type=Path, metavar="IN", help="model directory with config.json")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to make")
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="largest file (default: 5GB)")
    return parser.parse_args(argv)


def _convert(arguments: argparse.Namespace) -> int:
    shard_bytes = parse_size(arguments.shard_size, "--shard-size")
    from postprocess.convert.run import convert

    record = convert(arguments.source, arguments.out, shard_bytes)
    for name, kept in record["left"].items():
        print(f"note: {name} is {kept} once more and is not written", file=sys.stderr)
    print(
        f"{shown(arguments.out)}: {record['tensors']} tensors, {gigabytes(record['bytes'])}, each the bytes of its "
        f"original in {first(list(record['from']))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
