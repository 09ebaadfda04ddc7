"""`python -m postprocess.merge BASE ADAPTER OUT`: a model directory of base + adapter."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from launcher.cli import Parser, process_entry
from launcher.paths import shown
from launcher.sizes import parse_size
from launcher.units import count, gigabytes
from postprocess.merge import MergeOptions, merge
from postprocess.merge.files import left_note
from postprocess.merge.options import DTYPES, UNSTATED
from postprocess.merge.renames import add_rename, parse_renames

_DESCRIPTION = """\
Add a peft LoRA adapter (also DoRA, rank-stabilised) to its base: a plain model directory.

Tensors stream from safetensors to safetensors, so memory doesn't grow with the model. The merge
proves itself before OUT appears: untouched tensors are the base's bytes, targets changed, and the
logits on three prompts are those of base + adapter. merge.json in OUT has the proof.
"""
_EXAMPLES = """\
examples:
  python -m postprocess.merge ~/models/llama outputs/my_run/adapter merged
  python -m postprocess.merge BASE ADAPTER OUT --dtype bfloat16 --shard-size 2GB

exit codes: 0 OUT is there, 1 it can't be merged or the proof failed, 2 usage
"""


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _merge(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m postprocess.merge",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="model directory with safetensors")
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="adapter directory as peft writes it")
    parser.add_argument("out", type=Path, metavar="OUT", help="model directory to make")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="dtype of all weights (default: each one's own)")
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="largest file (default: 5GB)")
    parser.add_argument("--no-logits", action="store_true", help="leave out the comparison of logits")
    parser.add_argument("--any-base", action="store_true", help="merge into another base than the adapter's own")
    add_rename(parser)
    return parser.parse_args(argv)


def _merge(arguments: argparse.Namespace) -> int:
    options = MergeOptions(
        dtype=arguments.dtype,
        shard_bytes=parse_size(arguments.shard_size, "--shard-size"),
        logits=not arguments.no_logits,
        any_base=arguments.any_base,
        renames=parse_renames(arguments.rename),
    )
    record = merge(arguments.base, arguments.adapter, arguments.out, options)
    if record.get("reused"):
        print(f"{shown(arguments.out)} is this merge already: nothing to do")
        return 0
    for note in record["repaired"]:
        print(f"note: {note}", file=sys.stderr)
    for line in _report(record):
        print(line)
    print(f"merged model  {shown(arguments.out)} ({gigabytes(record['bytes'])})")
    return 0


def _report(record: dict[str, Any]) -> list[str]:
    tensors, logits = record["tensors"], record["logits"]
    lines = [
        f"tensors       {count(tensors['changed'])} changed ({record['method']}), "
        f"{count(tensors['same_bytes'])} the base's bytes, "
        f"{count(tensors['same_values_in_other_dtype'])} the base's values in another dtype"
    ]
    if record["same_base"] is None:
        lines.append(f"base          not checked: {UNSTATED}")
    if record["tokenizer"]["left"]:
        lines.append(f"tokenizer     {left_note(record)}")
    if (resized := record.get("vocabulary")) is not None:
        lines.append(
            f"vocabulary    {count(resized['rows'])} rows, the base has {count(resized['base_rows'])}: resized for "
            f"training, as the adapter's tokenizer of {count(resized['tokens'])} tokens explains"
        )
    if record["embeddings_untied"]:
        lines.append("embeddings    input and output were one and now differ: both are stored, no longer tied")
    if record["zero_change"]:
        lines.append(f"note          {len(record['zero_change'])} targets are as before: the adapter adds exactly zero")
    if logits["compared"]:
        lines.append(
            f"logits        differ by {logits['max_difference']:.2g} from base + adapter (allowed: "
            f"{logits['allowed_difference']:.2g}); the adapter moves them by {logits['max_change_by_adapter']:.2g}"
        )
    else:
        lines.append(f"logits        not compared: {logits['reason']}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
