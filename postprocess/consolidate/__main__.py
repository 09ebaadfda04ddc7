"""`python -m postprocess.consolidate IN OUT`: sharded checkpoint to model or adapter directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from launcher.cli import Parser, process_entry
from launcher.config.secrets import redact
from launcher.sizes import parse_size

_DESCRIPTION = """\
Make a checkpoint a directory of its own: a full one a model directory that transformers loads, a
LoRA adapter one that peft loads. Checkpoints are optimum-neuron's shards, or the torch engine's
checkpoints/step-N.

Every rank must be there, shapes must be those of config.json, and replicas must agree; of step-N
every byte must be as its manifest says. Otherwise nothing is written. Memory does not grow with the
model. See docs/consolidate.md.
"""
_EXAMPLES = """\
examples:
  python -m postprocess.consolidate outputs/my_run/checkpoint-100 my_model
  python -m postprocess.consolidate outputs/my_lora_run my_adapter --base Llama-3.2-1B

exit codes: 0 OUT is there, 1 the checkpoint cannot be used, 2 usage
"""


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code: 0, 1 the checkpoint cannot be used, 2 usage."""
    return process_entry(lambda given: _run(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m postprocess.consolidate",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="IN",
        help="run directory, step-N, checkpoint-N, the directory above shards/, or shards/",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to make")
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="most bytes in one file (default: 5GB)")
    parser.add_argument("--base", type=Path, metavar="DIR", help="base model: config and tokenizer that IN lacks")
    parser.add_argument(
        "--allow-diverged", action="store_true", help="where replicas differ over the ranks, take rank 0's and warn"
    )
    arguments = parser.parse_args(argv)
    arguments.shard_bytes = parse_size(arguments.shard_size, "--shard-size")
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
    if "step" in facts:
        origin = f"step {facts['step']}"
    else:
        origin = f"{facts['tensor_parallel_ranks']} x {facts['pipeline_stages']} ranks (tensor-parallel x pipeline)"
    return f"{out}: {result['kind']} of {result['tensors']} tensors, {result['bytes'] / 1e6:,.1f} MB, from {origin}"


if __name__ == "__main__":
    sys.exit(main())
