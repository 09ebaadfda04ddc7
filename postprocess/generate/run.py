"""From a run, an adapter or a model to answers on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.errors import TrntuneError
from launcher.io import write_json, write_jsonl
from postprocess.generate.answer import Answer, Sampling, answer, reference_losses
from postprocess.generate.models import Answerers, ModelLocation
from postprocess.generate.questions import Question
from postprocess.generate.score import ROUGE_L, rouge_l, summary

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """What is asked of the models."""

    sampling: Sampling
    batch_size: int = 8
    max_length: int = 1024
    """of a question with its right answer, tokens"""
    dtype: str = "fp32"
    device: str = "cpu"


@dataclass(frozen=True)
class Outcome:
    """Everything that was found out, by model: "base" and "tuned"."""

    questions: list[Question]
    generations: dict[str, list[Answer]]
    losses: dict[str, list[tuple[float, int]]]
    rouge: dict[str, list[float | None]]
    """of each question; None where nobody has said what the right answer is"""
    summary: dict[str, dict[str, Any]]


def generate(place: ModelLocation, questions: list[Question], options: Options) -> Outcome:
    """Answer and score every question with every model, one model after the other."""
    if not questions:
        raise TrntuneError("there is no question to answer")
    longest = options.max_length + options.sampling.max_new_tokens
    answerers = Answerers(place, DTYPES[options.dtype], options.device, longest)
    outcome = Outcome(questions, {}, {}, {}, {})
    for name in answerers.names:
        with answerers.model(name) as model:
            _ask(name, model, answerers, options, outcome)
    return outcome


def _ask(name: str, model: Any, answerers: Answerers, options: Options, outcome: Outcome) -> None:
    """Let one model answer, and score it where the right answer is known; fills its part of ``outcome``."""
    questions, tokenizer, prompt = outcome.questions, answerers.tokenizer, answerers.place.prompt
    generations = answer(model, tokenizer, questions, prompt, options.sampling, options.batch_size, answerers.way(name))
    outcome.generations[name] = generations
    known = {number: question for number, question in enumerate(questions) if question.reference is not None}
    losses, rouge = None, None
    if known:
        asked = list(known.values())
        losses = reference_losses(model, tokenizer, asked, prompt, options.max_length, options.batch_size)
        rouge = rouge_l([each.reference or "" for each in asked], [generations[number].text for number in known])
        outcome.losses[name] = losses
        by_number = dict(zip(known, rouge, strict=True))
        outcome.rouge[name] = [by_number.get(number) for number in range(len(questions))]
    outcome.summary[name] = summary(questions, generations, losses, rouge)


def records(outcome: Outcome) -> list[dict[str, Any]]:
    """One record a question, for samples.jsonl."""
    found = []
    for number, question in enumerate(outcome.questions):
        record: dict[str, Any] = {
            "instruction": question.row.instruction,
            "context": question.row.context,
            "reference": question.reference,
        }
        for name, generations in outcome.generations.items():
            record[name] = generations[number].text
            record[f"{name}_ended"] = generations[number].ended
            if name in outcome.rouge:
                record[f"{name}_rouge_l"] = outcome.rouge[name][number]
        found.append(record)
    return found


def write(outcome: Outcome, options: Options, directory: Path) -> None:
    """samples.jsonl and scores.json, each atomically."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_jsonl(directory / "samples.jsonl", records(outcome))
    content = {"summary": outcome.summary, "rouge_l": ROUGE_L, "options": asdict(options)}
    write_json(directory / "scores.json", content)
