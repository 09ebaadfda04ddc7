"""`python -m postprocess.consolidate IN OUT`: sharded checkpoint to model or adapter directory."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from launcher.cli import Parser
from launcher.errors import TrntuneError, UsageError
from launcher.secrets import redact

_DESCRIPTION = """\
Put a sharded checkpoint of optimum-neuron together: a full one to a model directory that
transformers loads, a LoRA adapter to a directory that peft loads.

Every rank must be there, shapes must be those of config.json, and replicas must agree; otherwise
nothing is written. Memory does not grow with the model. See docs/consolidate.md.
"""
_EXAMPLES = """\
examples:
  python -m postprocess.consolidate outputs/my_run/checkpoint-100 my_model
  python -m postprocess.consolidate outputs/my_lora_run my_adapter --base Llama-3.2-1B

exit codes: 0 OUT is there, 1 the checkpoint cannot be used, 2 usage
"""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
# Small enough for any test, large enough for one row of any model.
_MIN_SHARD_BYTES = 1024


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code: 0, 1 the checkpoint cannot be used, 2 usage."""
    try:
        return _run(_parse(sys.argv[1:] if argv is None else argv))
    except TrntuneError as error:
        print(f"error: {redact(' '.join(str(error).split()))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse_size(text: str) -> int:
    """Bytes of `5GB`, `500MB`, `2GiB` or a plain number. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--shard-size {text}: expected a size such as 5GB, 500MB or 2GiB")
    unit = 1024 if match[3] else 1000
    size = int(float(match[1]) * unit ** " KMGT".index(match[2].upper() or " "))
    if size < _MIN_SHARD_BYTES:
        raise UsageError(f"--shard-size {text}: at least {_MIN_SHARD_BYTES} bytes")
    return size


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m postprocess.consolidate",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source", type=Path, metavar="IN", help="run directory, checkpoint-N, the directory above shards/, or shards/"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to make")
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="most bytes in one file (default: 5GB)")
    parser.add_argument("--base", type=Path, metavar="DIR", help="base model: config and tokenizer that IN lacks")
    parser.add_argument(
        "--allow-diverged", action="store_true", help="where replicas differ over the ranks, take rank 0's and warn"
    )
    arguments = parser.parse_args(argv)
    arguments.shard_bytes = parse_size(arguments.shard_size)
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    from postprocess.consolidate.run import Options, consolidate

    options = Options(arguments.shard_bytes, arguments.base, arguments.allow_diverged)
    result = consolidate(arguments.source, arguments.out, options, warn=_warn)
    print(_summary(arguments.out, result))
    return 0


def _warn(message: str) -> None:
    print(f"warning: {redact(message)}", file=sys.stderr)


def _summary(out: Path, result: dict[str, Any]) -> str:
    facts = result["input"]
    if result.get("reused"):
        return f"{out} is this input's result already: nothing to do"
    return (
        f"{out}: {result['kind']} of {result['tensors']} tensors, {result['bytes'] / 1e6:,.1f} MB, from "
        f"{facts['tensor_parallel_ranks']} x {facts['pipeline_stages']} ranks (tensor-parallel x pipeline)"
    )


if __name__ == "__main__":
    sys.exit(main())
