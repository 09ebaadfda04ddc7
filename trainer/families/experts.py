"""Mixtures of experts: which parameters a token uses, and what the router adds to the training loss."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from trainer.libraries.transformers_versions import setting
from trainer.models.adapt import is_added, plain, size

# transformers' names for them, over all families.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k", "num_experts_per_token")
_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "decoder_ffn_dim")
_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
_SINGLE = re.compile(r"\.experts\.\d+\.")
_ROUTER_LOGITS = "output_router_logits"


def _setting(config: Any, names: tuple[str, ...]) -> Any:
    """The first that is set, in the configuration or in a part of it."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    found = (setting(part, name) for part in parts for name in names)
    return next((value for value in found if value is not None), None)


def idle_parameters(model: nn.Module, config: Any) -> int:
    """Parameters of experts that a token doesn't go through: all of the experts' but the share of the chosen ones.

    Experts are found by their names (a list of modules) or shape (one parameter with an expert in each entry of its
    first dimension). 0 for a model without experts.
    """
    count, chosen = _setting(config, _EXPERTS), _setting(config, _CHOSEN)
    if not isinstance(count, int) or not isinstance(chosen, int) or not 0 < chosen < count:
        return 0
    experts = sum(
        size(parameter)
        for name, parameter in model.named_parameters()
        if not is_added(name) and _of_experts(name, parameter, count)
    )
    return experts - experts * chosen // count


def has_experts(model: nn.Module, config: Any) -> bool:
    """Whether a router chooses among several experts for each token: a configuration may name them, and have none."""
    count = _setting(config, _EXPERTS)
    if not isinstance(count, int) or count < 2:
        return False
    return any(_of_experts(name, parameter, count) for name, parameter in model.named_parameters())


def active_width(config: Any) -> int:
    """How wide the MLP of a layer is for a token: of experts the chosen ones together."""
    found: Any = next((value for value in (setting(config, name) for name in _WIDTHS) if value), 4 * config.hidden_size)
    width = max(found) if isinstance(found, list | tuple) else int(found)
    each, chosen = setting(config, "moe_intermediate_size"), _setting(config, _CHOSEN)
    if not isinstance(chosen, int):
        return width
    return chosen * each if isinstance(each, int) else chosen * width


def looked_up(model: PreTrainedModel) -> int:
    """Parameters of embeddings that are only looked up: one that is the output head's matrix is none of them."""
    head = getattr(plain(model.get_output_embeddings()), "weight", None)
    named = ((name, module) for name, module in model.named_modules() if not is_added(name))
    tables = {module.weight for name, module in named if isinstance(module, nn.Embedding)}
    return sum(table.numel() for table in tables if table is not head)


def _of_experts(name: str, parameter: nn.Parameter, count: int) -> bool:
    """Whether a parameter belongs to one of ``count`` experts, or holds all of them, one after another."""
    _, inside, rest = name.partition(".experts.")
    number = rest.partition(".")[0]
    if number.isdigit():
        return int(number) < count
    return (bool(inside) and parameter.shape[0] % count == 0) or (parameter.dim() == 3 and parameter.shape[0] == count)


def single_expert(names: Iterable[str]) -> str | None:
    """The first of these names of parameters or modules that is of one expert among several: where a micro batch sends
    it no token, it gets no gradient. None where experts are one parameter, or there are none."""
    return next((name for name in names if _SINGLE.search(f"{name}.")), None)


@contextmanager
def without_router_loss(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model computes no auxiliary loss of its router. transformers would while it generates, too, where the
    configuration asks for it, and then fails: its mask is as long as the cache, the new tokens are one."""
    config = model.config.get_text_config()
    asked = getattr(config, _ROUTER_LOGITS, None)
    if not asked:
        yield
        return
    setattr(config, _ROUTER_LOGITS, False)
    try:
        yield
    finally:
        setattr(config, _ROUTER_LOGITS, asked)


def router_coefficient(model: PreTrainedModel) -> float:
    """What the router's auxiliary loss is multiplied by in transformers' training loss; 0.0 where the configuration
    doesn't ask for it (output_router_logits)."""
    config = model.config.get_text_config()
    if not getattr(config, _ROUTER_LOGITS, False):
        return 0.0
    return float(_setting(config, _COEFFICIENTS) or 0.0)
