"""`python -m postprocess.generate RUN_OR_MODEL ...`: answers of the base and the tuned model side by side."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.cli import Parser, process_entry
from launcher.config.machine_schema import ANSWERING_DEVICES
from launcher.config.schema import FORMATS, ColumnsConfig
from launcher.errors import UsageError
from launcher.paths import shown
from postprocess.merge.renames import add_rename, parse_renames

if TYPE_CHECKING:
    from postprocess.generate.models import ModelLocation
    from postprocess.generate.questions import Question

_DESCRIPTION = """\
Ask a tuned model and its base the same questions, in the prompt format of its training.

RUN_OR_MODEL is a run directory (its held-out rows are the questions, its base the base), an adapter
directory, or a model directory. Answers end at EOS, or at the token by which the chat template ends
a turn. With right answers at hand their loss and ROUGE-L are reported. Writes samples.jsonl and scores.json.
"""
_EXAMPLES = """\
examples:
  python -m postprocess.generate outputs/2026-01-31_12-00-00_lora --questions 32
  python -m postprocess.generate outputs/my_run --ask "What does os.walk do?" --temperature 0.7 --seed 1
  python -m postprocess.generate merged --base models/base --file rows.jsonl --output answers
"""


def main(argv: list[str] | None = None) -> int:
    """Process entry. Returns the exit code: 0, 1 it can't be done, 2 usage."""
    return process_entry(lambda given: _generate(_parse(given)), argv)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m postprocess.generate",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="RUN_OR_MODEL")
    add("--base", type=Path, metavar="DIR", help="the base model, where it isn't known or lies elsewhere")
    add("--ask", action="append", default=[], metavar="TEXT", help="a question; may be given several times")
    add("--context", default="", metavar="TEXT", help="context of these questions")
    add("--file", type=Path, metavar="FILE", help="questions with right answers, of a kind and format of docs/data.md")
    add("--column", action="append", default=[], metavar="NAME=FIELD", help="another field than NAME of the format's")
    add("--format", choices=FORMATS, help="of the rows of the file; otherwise found from their fields")
    add("--questions", type=_positive, default=16, metavar="N", help="at most so many of a file or of held-out rows")
    add("--prompt", choices=("plain", "chat"), help="prompt format; a run knows its own, else plain")
    add("--max-new-tokens", type=_positive, default=96, metavar="N", help="longest answer")
    add("--temperature", type=_share, default=0.0, metavar="T", help="0: greedy")
    add("--top-p", type=_probability, default=1.0, metavar="P", help="draw among the most likely tokens of this mass")
    add("--seed", type=int, default=0, metavar="N", help="of the drawing")
    add("--batch-size", type=_positive, default=8, metavar="N")
    add("--dtype", choices=("fp32", "bf16"), default="fp32")
    add("--device", choices=ANSWERING_DEVICES, default="cpu")
    add_rename(parser)
    add("--output", type=Path, metavar="DIR", help="default: generate/ in the run directory, else ./answers")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text} must be between 0 and 10")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return value


def _generate(arguments: argparse.Namespace) -> int:
    if arguments.ask and arguments.file:
        raise UsageError("--ask and --file cannot be given together")
    # torch and transformers take seconds to import: after the command line has been read.
    from postprocess.generate import models, run, show
    from postprocess.generate.answer import Sampling

    place = models.locate(arguments.model, arguments.base, arguments.prompt, parse_renames(arguments.rename))
    asked = _questions(arguments, place)
    sampling = Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.seed)
    # The rows of a run are cut as in its training, so that their loss is the one that it reported.
    length = {} if place.run is None else {"max_length": place.run.load_config().training.max_length}
    options = run.Options(sampling, arguments.batch_size, dtype=arguments.dtype, device=arguments.device, **length)
    outcome = run.generate(place, asked, options)
    output = arguments.output or (place.run.path / "generate" if place.run else Path("answers"))
    run.write(outcome, options, output)
    show.show(outcome)
    print(f"written to {shown(output.absolute())}")
    return 0


def _columns(given: list[str]) -> ColumnsConfig:
    """Of --column, as dataset.columns of a run has them."""
    names, found = [field.name for field in fields(ColumnsConfig)], dict[str, Any]()
    for text in given:
        name, _, column = text.partition("=")
        if name not in names or not column:
            raise UsageError(f"--column {text}: write NAME=FIELD, with a NAME among {', '.join(names)}")
        found[name] = None if (name, column) == ("context", "null") else column
    return ColumnsConfig(**found)


def _questions(arguments: argparse.Namespace, place: ModelLocation) -> list[Question]:
    from postprocess.generate import questions

    if arguments.ask or arguments.file:
        typed = arguments.ask and questions.typed(arguments.ask, arguments.context)
        columns = _columns(arguments.column)
        asked = typed or questions.from_file(arguments.file, arguments.questions, columns, arguments.format)
        return asked if place.run is None or arguments.prompt else questions.as_conversations(asked, place.run)
    if place.run is None:
        raise UsageError(f"{arguments.model} is no run directory, so it has no held-out rows: give --ask or --file")
    return questions.held_out(place.run, arguments.questions)


if __name__ == "__main__":
    sys.exit(main())
