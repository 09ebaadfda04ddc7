"""The numbers of parameters that a run's results are about, counted from the modules themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from launcher.architecture.adapters import Modules, first_layer, trained
from launcher.config.schema import Config
from trainer.families.experts import idle_parameters, looked_up
from trainer.families.pairs import attention_width
from trainer.metrics.throughput import ModelSize
from trainer.models.adapt import is_added, is_linear, plain
from trainer.models.adapt import size as size_of


@dataclass(frozen=True)
class ParameterCounts:
    """Distinct logical parameters, tied ones counted once."""

    total: int
    """of the model, without adapters"""
    trainable: int
    trainable_local: int
    """on this rank"""


def model_size(base: Any, counts: ParameterCounts, config: Config, modules: Modules) -> ModelSize:
    """Parameters of transformers' model ``base`` that take part in a token's matrix products, and the width of
    attention. ``modules``: its names before peft changed it."""
    idle = idle_parameters(base, base.config.get_text_config())
    size = ModelSize(
        matmul_params=counts.total - looked_up(base) - idle,
        adapter_params=0,
        attention_width=attention_width(base.config),
    )
    return size if config.method.name == "full" else _with_adapter(size, base, counts, config, modules, idle)


def _with_adapter(
    size: ModelSize, base: Any, counts: ParameterCounts, config: Config, modules: Modules, idle: int
) -> ModelSize:
    """What an adapter adds to the products, and what its backward pass doesn't reach. ``idle``: of all layers."""
    found = trained(config.lora, modules)
    first = first_layer(config.lora, found, modules)
    named = list(base.named_parameters())
    # Neuron's base is one without its adapter, beside which nothing else is trained there.
    matrices = sum(p.numel() for name, p in named if "lora_" in name) or counts.trainable
    saved = [module for name in found.saved if is_linear(module := plain(base.get_submodule(name)))]
    layers = [(modules.layer_of(name), size_of(p)) for name, p in named if not is_added(name)]
    below = sum(numel for layer, numel in layers if layer is not None and layer < first)
    return replace(
        size,
        adapter_params=matrices,
        saved_params=sum(module.weight.numel() for module in saved),
        forward_only_params=below - idle * first // max(1, modules.count),
        forward_only_width=size.attention_width * first // max(1, modules.count),
    )
