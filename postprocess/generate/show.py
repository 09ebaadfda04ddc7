"""The answers and scores as a person reads them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from postprocess.generate.run import Outcome
from postprocess.generate.score import ROUGE_L

# Label, what is shown, its format, and over how many questions it is: not all have a right answer, and of those not all
# have room in a row of the training.
_ROWS = (
    ("loss of the right answers", "reference_loss", "{:.4f}", "references_scored"),
    ("ROUGE-L", "rouge_l", "{:.3f}", "rouge_l_scored"),
    ("mean answer, tokens", "answer_tokens", "{:.1f}", "questions"),
    ("ended by themselves", "ended_by_eos", "{:.0%}", "questions"),
)


def show(outcome: Outcome, most: int = 10) -> None:
    """Print the first ``most`` questions with every answer, then the scores of all."""
    console = Console(highlight=False)
    for number, question in enumerate(outcome.questions[:most]):
        console.print(f"[bold]Question {number + 1}: {escape(question.row.instruction)}[/bold]")
        if question.row.context:
            console.print(f"  context    {escape(question.row.context)}")
        if question.reference is not None:
            console.print(f"  reference  {escape(_flat(question.reference))}")
        for name, generations in outcome.generations.items():
            console.print(f"  {name:<10} {escape(_flat(generations[number].text) or '(an empty answer)')}")
        console.print()
    left = len(outcome.questions) - most
    if left > 0:
        console.print(f"and {left} more in samples.jsonl\n")
    console.print(scores(outcome))


def scores(outcome: Outcome) -> Table:
    """A column a model; a row says of how many questions it is the mean where that is not all."""
    asked, found = len(outcome.questions), list(outcome.summary.values())
    table = Table(title=f"{asked} questions", title_justify="left", caption_justify="left")
    table.add_column("")
    for name in outcome.summary:
        table.add_column(name, justify="right")
    for label, key, shape, counted in _ROWS:
        scored = min(each[counted] for each in found)
        if any(each[key] is not None for each in found):
            of = "" if scored == asked else f", {scored} of {asked}"
            table.add_row(label + of, *(_cell(each[key], shape) for each in found))
    if outcome.rouge:
        table.caption = f"words of ROUGE-L: {ROUGE_L['words']} ({ROUGE_L['tokenizer']})"
    return table


def _cell(value: Any, shape: str) -> str:
    return "-" if value is None else shape.format(value)


def _flat(text: str) -> str:
    return " ".join(text.split())
