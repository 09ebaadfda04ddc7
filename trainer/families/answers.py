"""How a model answers so that each token is the one that a forward pass over all before it gives: found by trying.

Prompts of several lengths share a batch with padding on the left, and what earlier tokens gave is kept in a cache; not
every family of transformers computes the same then (a recurrent state runs over the padding, a cache forgets a window).
A small model of the same architecture shows it, as for training (trainer.families.proof).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from trainer.families.experts import without_router_loss
from trainer.families.small import with_attention

_PROMPTS = (19, 7, 12)
"""tokens: more than twice the windows of a small model, less, and in between"""
_NEW = 6


@dataclass(frozen=True)
class Answering:
    """A way to answer. The most that a family can do is a padded batch with a cache."""

    attention: str | None
    """transformers' name of it; None: its own choice"""
    batched: bool
    """prompts of other lengths are answered together"""
    cached: bool


FASTEST = Answering(None, batched=True, cached=True)


def continuations(
    model: Any, prompts: list[list[int]], how: Answering, pad_token_id: int, **settings: Any
) -> list[list[int]]:
    """The new tokens of each prompt, by transformers' generate with ``settings``."""
    batches = [prompts] if how.batched else [[prompt] for prompt in prompts]
    return [ids for batch in batches for ids in _batch(model, batch, how, pad_token_id, settings)]


def _batch(
    model: Any, prompts: list[list[int]], how: Answering, pad_token_id: int, settings: dict[str, Any]
) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with without_router_loss(model), torch.inference_mode():
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            use_cache=how.cached,
            pad_token_id=pad_token_id,
            **settings,
        )
    found: list[list[int]] = output[:, width:].tolist()
    return found


def answering(model: PreTrainedModel, attention: str, fixed: bool = False) -> Answering | None:
    """The fastest way in which ``model``, a small one with eager attention, answers as it computes; None where there is
    none. ``attention`` is the one of transformers that computes the same forward pass; ``fixed``: no other will do."""
    prompts = _prompts(model)
    with torch.inference_mode():
        expected = [_greedy(model, prompt) for prompt in prompts]
    models: dict[str, Any] = {}
    for how in _ways(attention, fixed):
        name = str(how.attention)
        if name not in models:
            models[name] = model if name == "eager" else with_attention(model, name)
        # A batch of one has no padding, which some take for another mask.
        if _tried(models[name], prompts, how) == expected and _tried(models[name], prompts[:1], how) == expected[:1]:
            return how
    return None


def _ways(attention: str, fixed: bool) -> Iterator[Answering]:
    attentions = [attention] if fixed or attention == "eager" else [attention, "eager"]
    for batched, cached in ((True, True), (False, True), (False, False)):
        yield from (Answering(name, batched, cached) for name in attentions)


def _prompts(model: PreTrainedModel) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    most = min(model.config.get_text_config().vocab_size, 90)
    found: list[list[int]] = [torch.randint(3, most, (length,), generator=generator).tolist() for length in _PROMPTS]
    return found


def _greedy(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    found: list[int] = []
    for _ in range(_NEW):
        ids = torch.tensor([prompt + found], device=model.device)
        found.append(int(model(ids, use_cache=False).logits[0, -1].argmax()))
    return found


def _tried(model: Any, prompts: list[list[int]], how: Answering) -> list[list[int]] | None:
    """What generate gives without the settings that a family's configuration brings along; None where it fails."""
    own = getattr(model, "generation_config", None)
    model.generation_config = GenerationConfig()
    try:
        return continuations(model, prompts, how, 0, max_new_tokens=_NEW, do_sample=False, eos_token_id=None)
    except Exception:  # whatever a family's code raises: this way doesn't work
        return None
    finally:
        model.generation_config = own
