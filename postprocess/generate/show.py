"""The answers and scores as a person reads them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from postprocess.generate.run import Outcome

_ROWS = (
    ("loss of the right answers", "reference_loss", "{:.4f}"),
    ("ROUGE-L", "rouge_l", "{:.3f}"),
    ("mean answer, tokens", "answer_tokens", "{:.1f}"),
    ("ended by themselves", "ended_by_eos", "{:.0%}"),
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
        for name, answers in outcome.answers.items():
            console.print(f"  {name:<10} {escape(_flat(answers[number].text) or '(an empty answer)')}")
        console.print()
    left = len(outcome.questions) - most
    if left > 0:
        console.print(f"and {left} more in samples.jsonl\n")
    console.print(scores(outcome))


def scores(outcome: Outcome) -> Table:
    """A column a model."""
    asked = len(outcome.questions)
    # Rows that leave no room for an answer in training's rows have no loss there, and none here.
    scored = min((found["references_scored"] for found in outcome.summary.values()), default=asked) or asked
    less = "" if scored == asked else f", the loss of {scored} right answers"
    table = Table(title=f"{asked} questions{less}", title_justify="left")
    table.add_column("")
    for name in outcome.summary:
        table.add_column(name, justify="right")
    for label, key, shape in _ROWS:
        values = [found[key] for found in outcome.summary.values()]
        if any(value is not None for value in values):
            table.add_row(label, *(_cell(value, shape) for value in values))
    return table


def _cell(value: Any, shape: str) -> str:
    return "-" if value is None else shape.format(value)


def _flat(text: str) -> str:
    return " ".join(text.split())
