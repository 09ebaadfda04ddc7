"""How near the answers come to the right ones: their loss, and ROUGE-L of what is generated."""

from __future__ import annotations

from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from postprocess.generate import words
from postprocess.generate.answer import Answer
from postprocess.generate.questions import Question

ROUGE_L = {"measure": "F1 of the longest common subsequence of words", "tokenizer": words.NAME, "words": words.RULES}
"""What a ROUGE-L of ours is, for everything that states one."""


def rouge_l(references: list[str], generations: list[str]) -> list[float]:
    """ROUGE-L F1 of each answer: longest common subsequence of words, of every script, as rouge-score computes it."""
    scorer = RougeScorer(["rougeL"], tokenizer=words.UnicodeWords())
    return [
        float(scorer.score(reference, text)["rougeL"].fmeasure)
        for reference, text in zip(references, generations, strict=True)
    ]


def summary(
    questions: list[Question],
    generations: list[Answer],
    losses: list[tuple[float, int]] | None,
    rouge: list[float] | None,
) -> dict[str, Any]:
    """Means; loss is a trained token's, so long answers weigh more, as in training. ``references_scored`` right answers
    have a loss (those with room in a row), ``rouge_l_scored`` were compared with what was answered."""
    tokens = sum(count for _, count in losses) if losses else 0
    return {
        "questions": len(questions),
        "references_scored": len(losses) if losses else 0,
        "reference_loss": sum(loss for loss, _ in losses) / tokens if losses and tokens else None,
        "rouge_l_scored": len(rouge) if rouge else 0,
        "rouge_l": sum(rouge) / len(rouge) if rouge else None,
        "answer_tokens": sum(each.tokens for each in generations) / len(generations),
        "ended_by_eos": sum(each.ended for each in generations) / len(generations),
    }
