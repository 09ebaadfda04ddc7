"""Answers in batches, greedy or drawn with a seed, and the loss of the right ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from postprocess.generate.questions import Question
from trainer.data.tokenize import IGNORE, end_ids, prompt_ids, tokenize
from trainer.data.turn_end import until_end
from trainer.families.answers import FASTEST, Answering, continuations
from trainer.families.experts import without_router_loss


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class Answer:
    """One answer. ``ended`` says whether the model ended it itself, by a token that ends answers."""

    text: str
    tokens: int
    ended: bool


def answer(
    model: Any,
    tokenizer: Any,
    questions: list[Question],
    prompt: str,
    sampling: Sampling,
    batch_size: int,
    how: Answering = FASTEST,
) -> list[Answer]:
    """An answer to each question, in their order; ``how``: in a way in which the model's family is exact.

    Prompts are those of training. The seed is set before each batch to a function of its first question's number, so
    that a question's answer doesn't depend on what was asked in other batches.
    """
    prompts = [prompt_ids(question.row, prompt, tokenizer) for question in questions]
    ends = end_ids(questions[0].row, prompt, tokenizer)
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    settings = drawn if sampling.temperature > 0 else greedy
    generations: list[Answer] = []
    for start in range(0, len(prompts), batch_size):
        torch.manual_seed(sampling.seed * 1_000_003 + start)
        found = continuations(
            model,
            prompts[start : start + batch_size],
            how,
            tokenizer.pad_token_id,
            eos_token_id=ends,
            max_new_tokens=sampling.max_new_tokens,
            **settings,
        )
        generations += [_answer(ids, tokenizer, ends) for ids in found]
    return generations


def _answer(ids: list[int], tokenizer: Any, ends: list[int]) -> Answer:
    kept = until_end(ids, ends)
    ended = len(kept) < len(ids)
    return Answer(tokenizer.decode(kept, skip_special_tokens=True).strip(), len(kept), ended)


def reference_losses(
    model: Any, tokenizer: Any, questions: list[Question], prompt: str, max_length: int, batch_size: int
) -> list[tuple[float, int]]:
    """Summed negative log-likelihood (nats) of each right answer with its EOS, and its tokens.

    By plain transformers, one padded batch after the other: independent of the training's own loss.
    """
    examples = tokenize([question.row for question in questions], prompt, "response", max_length, tokenizer).examples
    found: list[tuple[float, int]] = []
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        width = max(len(example.input_ids) for example in part)
        ids = torch.tensor([e.input_ids + [tokenizer.pad_token_id] * (width - len(e.input_ids)) for e in part])
        labels = torch.tensor([e.labels + [IGNORE] * (width - len(e.labels)) for e in part])
        # Padding behind a text changes nothing of it (trainer.families.proof), and some families are another model
        # with a mask.
        with without_router_loss(model), torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1].float()
        targets = labels[:, 1:].to(logits.device)
        losses = cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none").sum(dim=1)
        counts = (targets != IGNORE).sum(dim=1)
        found += list(zip(losses.double().tolist(), counts.tolist(), strict=True))
    return found
