"""How a model may be trained, by trying it: packed rows, a document a row, or not at all.

Two documents are computed by transformers' own eager attention, each alone; then padded; then packed into one row.
What doesn't give the same logits is refused, with the module that did it. That is done with a small model of the same
architecture (trainer.families.small), in fp32, before any weight is read: what a family needs that nobody here has
heard of shows as a difference, not as another model.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from trainer.families.small import (
    not_for_texts,
    own_positions,
    small_config,
    small_model,
    text_config,
    with_attention,
)
from trainer.families.way import Way
from trainer.models.attention import DOCUMENT_ATTENTION, segments_of
from trainer.models.reach import Reach, UnknownAttention, packed_rows

_LENGTHS = (21, 14)
"""of the documents: more than twice the windows of a small model, and less; over THRESHOLD, and under it"""
_PADDING = 5
_NOT_ALONE = "can't compute a text alone"
_TOLERANCE = 5e-5
"""difference of logits that is rounding, of the largest one, in fp32"""


def accepted(module: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of ``arguments`` that the module's forward pass names or takes as keywords."""
    parameters = inspect.signature(module.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def decoder_of(model: PreTrainedModel) -> nn.Module | None:
    """What gives the hidden states that the head reads; None where it can't be told from the whole model."""
    for found in (model.get_decoder(), model.base_model):
        # A head may be named decoder, too.
        if isinstance(found, PreTrainedModel) and found is not model:
            return found
    return None


def prove(config: PretrainedConfig, length: int, trust_remote_code: bool = False) -> Way:
    """The way of training of a model with this configuration on rows of ``length`` positions, tried on a small one of
    its kind.

    Raises whatever transformers raises when no small one can be built.
    """
    if (why := not_for_texts(config, trust_remote_code)) is not None:
        return Way(why, why, "eager", False)
    way = tried(small_config(config, length), trust_remote_code)
    if way.packed is None:
        return way
    short = tried(small_config(config, 1), trust_remote_code)
    longer = way.alone is not None and short.alone is None
    own = own_positions(text_config(config).to_dict())
    if longer and _NOT_ALONE in (way.alone or "") and own is not None and own[1] < length:
        why = f"it has {own[1]} positions ({own[0]}) and nothing for those beyond"
        way = replace(way, packed=why, alone=why)
    return replace(way, too_long=short.packed is None or longer)


_TRIED: dict[tuple[str, str], Way] = {}


def tried(config: PretrainedConfig, trust_remote_code: bool = False) -> Way:
    """``examine`` of a small model with this configuration, once in a process: a run that trains and answers, or merges
    and compares, asks twice. Foreign code is tried each time."""
    key = (type(config).__qualname__, _identity(config))
    if trust_remote_code or key not in _TRIED:
        _TRIED[key] = examine(small_model(config, "eager", trust_remote_code))
    return _TRIED[key]


def _identity(config: PretrainedConfig) -> str:
    settings = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    return json.dumps(settings, sort_keys=True, default=str)


def examine(model: PreTrainedModel, small: bool = True, tolerance: float = _TOLERANCE) -> Way:
    """The way of training of ``model``, which has eager attention and is in evaluation mode. A ``small`` one
    is also built with transformers' other attention; without that it keeps the eager one."""
    with torch.inference_mode():
        documents = _documents(model.config.get_text_config().vocab_size)
        try:
            expected = [_logits(model, document[None])[0] for document in documents]
        except Exception as error:
            why = f"{type(model).__name__} {_NOT_ALONE} ({_line(error)})"
            return Way(why, why, "eager", False)
        try:
            alone = _why_not_alone(model, documents, expected, tolerance)
        except Exception as error:
            alone = f"{type(model).__name__} can't compute texts beside each other ({_line(error)})"
        attention = "eager"
        if small and alone is None and getattr(model, "_supports_sdpa", False):
            attention = _faster(with_attention(model, "sdpa"), documents, expected, tolerance)
        head = alone is None and _has_plain_head(model, documents[0], tolerance)
        packed = alone or _why_not_packed(model, documents, expected, tolerance)
    return Way(packed, alone, attention, head)


def _documents(vocabulary: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, min(vocabulary, 90), (length,), generator=generator) for length in _LENGTHS]


def _logits(model: PreTrainedModel, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    inputs = {"input_ids": ids.to(model.device), "use_cache": False, **arguments}
    return model(**accepted(model, inputs)).logits.float()


def _differ(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    # Written so that a NaN is a difference.
    return not bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _changed(ids: torch.Tensor) -> torch.Tensor:
    return torch.where(ids > 40, ids - 20, ids + 20)


def _why_not_alone(
    model: PreTrainedModel, documents: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float
) -> str | None:
    """Why a document in a row with padding behind it isn't what transformers computes for it alone; None: it is."""
    name = type(model).__name__
    if expected[0].shape[0] != len(documents[0]):
        return f"{name} gives {expected[0].shape[0]} predictions for {len(documents[0])} tokens"
    later = documents[0].clone()
    later[-4:] = _changed(later[-4:])
    if _differ(_logits(model, later[None])[0, :-4], expected[0][:-4], tolerance):
        return f"{name} isn't causal: a later token changes what an earlier one predicts"
    rows = torch.zeros(2, len(documents[0]) + _PADDING, dtype=torch.int64)
    for row, document in zip(rows, documents, strict=True):
        row[: len(document)] = document
    found = _logits(model, rows)
    for logits, document, own in zip(found, documents, expected, strict=True):
        if _differ(logits[: len(document)], own, tolerance):
            return f"padding behind a document, or the row beside it, changes what {name} computes"
    if _differ(_logits(model, documents[0][None])[0], expected[0], tolerance):
        return f"{name} remembers what it computed before"
    return None


def _faster(
    model: PreTrainedModel, documents: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float
) -> str:
    """sdpa, where ``model``, which has it, computes what eager attention did; else eager."""
    for document, own in zip(documents, expected, strict=True):
        if _differ(_logits(model, document[None])[0], own, tolerance):
            return "eager"
    return "sdpa" if _why_not_alone(model, documents, expected, tolerance) is None else "eager"


def _has_plain_head(model: PreTrainedModel, document: torch.Tensor, tolerance: float) -> bool:
    decoder, head = decoder_of(model), model.get_output_embeddings()
    if decoder is None or head is None:
        return False
    inputs = {"input_ids": document[None].to(model.device), "use_cache": False}
    hidden = getattr(decoder(**accepted(decoder, inputs)), "last_hidden_state", None)
    if hidden is None or hidden.shape[-1] != head.weight.shape[-1]:
        return False
    return not _differ((hidden @ head.weight.T).float(), _logits(model, document[None]), tolerance)


def _why_not_packed(
    model: PreTrainedModel, documents: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float
) -> str | None:
    """Why documents that share a row aren't what transformers computes for each alone; None: they are."""
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        return f"{name} has layers of its own where others call transformers' attention functions"
    if "position_ids" not in accepted(model, {"position_ids": None}):
        return f"{name} takes no positions"
    try:
        with _attention(model, DOCUMENT_ATTENTION):
            for order in ((0, 1), (1, 0)):
                row = [documents[index] for index in order]
                found = _packed(model, row)
                for part, index in zip(found, order, strict=True):
                    if _differ(part, expected[index], tolerance):
                        return _culprit(model, row) or f"{name} computes a document otherwise when it shares a row"
    except UnknownAttention as error:
        return str(error)
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
        where = _raised_in(error) or name
        if Reach.__name__ in str(error):
            return f"{where} works on the mask itself, and documents have none"
        return f"{where} can't compute packed rows ({_line(error)})"
    return None


def _raised_in(error: BaseException) -> str | None:
    """The class of the innermost module whose forward pass raised ``error``."""
    found, trace = None, error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            found = type(owner).__name__
        trace = trace.tb_next
    return found


def packed_inputs(documents: list[torch.Tensor], device: torch.device) -> dict[str, Any]:
    """One row of ``documents`` and some padding, as trainer.models.causal_lm hands it to a model."""
    length = sum(map(len, documents)) + _PADDING
    ids, positions = torch.zeros(2, 1, length, dtype=torch.int64)
    mask = torch.zeros(1, length, dtype=torch.int64)
    bounds, start = [], 0
    for document in documents:
        end = start + len(document)
        ids[0, start:end], positions[0, start:end], mask[0, start:end] = document, torch.arange(len(document)), 1
        bounds.append((0, start, end))
        start = end
    return {
        "input_ids": ids.to(device),
        "position_ids": positions.to(device),
        "attention_mask": mask.to(device),
        "segments": segments_of(bounds, 1, length),
        "use_cache": False,
    }


def _packed(model: PreTrainedModel, documents: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    inputs = packed_inputs(documents, model.device)
    with packed_rows(inputs["segments"]):
        logits = model(**accepted(model, inputs)).logits[0].float()
    lengths = [len(document) for document in documents]
    return logits[: sum(lengths)].split(lengths)


def _culprit(model: PreTrainedModel, documents: list[torch.Tensor]) -> str | None:
    """The first module that carries something from the first document into the second: the part of its input that
    belongs to the second stays, and its output changes."""
    start, end = len(documents[0]), sum(map(len, documents))
    first = _passages(model, documents, slice(start, end))
    second = _passages(model, [_changed(documents[0]), documents[1]], slice(start, end))
    for (name, given, gave), (_, given_then, gave_then) in zip(first, second, strict=True):
        if given is None or gave is None or given_then is None or gave_then is None:
            continue
        if not _differ(given_then, given, _TOLERANCE) and _differ(gave_then, gave, _TOLERANCE):
            return f"{name} carries one document into the next"
    return None


def _passages(
    model: PreTrainedModel, documents: list[torch.Tensor], part: slice
) -> list[tuple[str, torch.Tensor | None, torch.Tensor | None]]:
    """Each call of a module, inner ones first: its class, and the positions ``part`` of what it was given and gave."""
    length = sum(map(len, documents)) + _PADDING
    calls: list[tuple[str, torch.Tensor | None, torch.Tensor | None]] = []

    def positions(values: Any) -> torch.Tensor | None:
        for value in values if isinstance(values, tuple | list) else [values]:
            if torch.is_tensor(value) and value.is_floating_point() and value.dim() == 3 and value.shape[1] == length:
                return value[:, part].clone()
        return None

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((type(module).__name__, positions([*args, *kwargs.values()]), positions(output)))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in model.modules()]
    try:
        _packed(model, documents)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation("eager")


def _line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"[:160]
