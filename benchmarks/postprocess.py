"""`python -m benchmarks.postprocess merge|consolidate --size 1B`: what follows training against `cp` of its bytes."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Case, as_json, run_interleaved, show, table
from launcher.cli import Parser, process_entry
from launcher.io import free_bytes
from launcher.run_dir.provenance import software

_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code."""
    return process_entry(lambda given: _run(_parse(given)), argv)


def _run(arguments: argparse.Namespace) -> int:
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="postprocess-", dir=arguments.directory) as scratch:
        arguments.run(arguments, Path(scratch))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.postprocess", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    merge = commands.add_parser("merge", help="base + LoRA adapter (rank 16 on q and v) against cp of the base")
    merge.add_argument("--with-peft", action="store_true", help="also peft: load, merge_and_unload, save_pretrained")
    merge.set_defaults(run=_merge)
    consolidate = commands.add_parser("consolidate", help="a model that 8 ranks have saved in parts against cp of them")
    consolidate.set_defaults(run=_consolidate)
    for command in (merge, consolidate):
        command.add_argument("--size", choices=("tiny", "1B", "3B", "8B"), default="1B")
        command.add_argument("--repeats", type=int, default=3)
        command.add_argument(
            "--directory", type=Path, default=Path("outputs/benchmarks"), help="on the disk to measure"
        )
    return parser.parse_args(argv)


def _merge(arguments: argparse.Namespace, scratch: Path) -> None:
    from benchmarks.synthetic import check_room, description, write_adapter, write_base

    size = arguments.size
    check_room(scratch, size, copies=2)
    base, adapter = write_base(scratch / "base", size), write_adapter(scratch / "adapter", size)
    copy = Case("cp -r", ["cp", "-r", str(base), str(scratch / "copy")], scratch / "copy", [base])
    merged = scratch / "merged"
    ours = [sys.executable, "-m", "postprocess.merge", str(base), str(adapter), str(merged), "--no-logits"]
    cases = [copy, Case("trntune merge", ours, merged, [base, adapter])]
    if arguments.with_peft:
        command = [sys.executable, "-c", _PEFT, str(base), str(adapter), str(scratch / "peft")]
        cases.append(Case("peft", command, scratch / "peft", [base, adapter]))
    _report("merge", arguments, cases, copy, description(size))


def _consolidate(arguments: argparse.Namespace, scratch: Path) -> None:
    from benchmarks.consolidate_data import RANKS, SHAPES, write_checkpoint
    from benchmarks.synthetic import check_room

    size, source, out = arguments.size, scratch / "checkpoint", scratch / "consolidated"
    check_room(scratch, size, copies=2)
    written = write_checkpoint(source, SHAPES[size])
    copy = Case("cp -r", ["cp", "-r", str(source), str(scratch / "copy")], scratch / "copy", [source])
    ours = [sys.executable, "-m", "postprocess.consolidate", str(source), str(out)]
    model: dict[str, object] = {"size": size, "bytes": written, "ranks": RANKS}
    _report("consolidate", arguments, [copy, Case("trntune consolidate", ours, out, [source])], copy, model)


def _report(
    name: str, arguments: argparse.Namespace, cases: list[Case], reference: Case, model: dict[str, object]
) -> None:
    """Run the cases, print the table and leave everything measured as JSON."""
    run_interleaved(cases, arguments.repeats)
    show(table(f"{name}, {arguments.size}, {arguments.repeats} rounds", cases, reference))
    result = {
        "benchmark": name,
        "model": model,
        "cases": as_json(cases, reference),
        "software": software(),
        "free": free_bytes(arguments.directory),
    }
    file = arguments.directory / f"postprocess_{name}_{arguments.size}.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"all samples: {file}")


if __name__ == "__main__":
    sys.exit(main())
