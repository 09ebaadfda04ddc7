"""Which layers an adapter reaches, by name: peft 0.17's rules as pure functions on the names of a model's modules.

The plan counts by them without importing peft, and training holds what peft made against them (trainer.models.adapt).
What peft takes in silence, or takes otherwise when it reads an adapter back, is a fault here. Names in brackets are
peft's source files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from launcher.config.schema import ALL_LINEAR, LoraConfig

MAX_NAMES = 4  # in a message


@dataclass(frozen=True)
class Modules:
    """A model's modules by their full names, in its own order, the model itself left out."""

    names: tuple[str, ...]
    linear: tuple[str, ...]
    """linear layers that can get an adapter: all but the output head, and those in ``refused``"""
    leaves: frozenset[str]
    """modules with parameters and no modules with parameters inside: what can be trained in full"""
    biases: frozenset[str]
    """parameters with "bias" in their names, by which peft finds them"""
    layers: str | None
    """the list of decoder layers, such as model.layers; None where there is no one list of them"""
    count: int
    """decoder layers"""
    embedding: str
    head: str
    vocabulary: int
    """rows of the input embedding"""
    tied: bool
    """whether the output head is the input embedding"""
    no_tokens: str = ""
    """why single rows of the embedding can't be trained; empty where they can"""
    refused: tuple[tuple[str, str], ...] = ()
    """last parts of the names of what could be taken for such a layer, and why it gets no adapter"""

    def layer_of(self, name: str) -> int | None:
        """The decoder layer that a module lies in; None outside of them."""
        if self.layers is None or not name.startswith(f"{self.layers}."):
            return None
        return int(name.removeprefix(f"{self.layers}.").partition(".")[0])


@dataclass(frozen=True)
class Adapted:
    """A layer with an adapter."""

    name: str
    r: int
    alpha: int


@dataclass(frozen=True)
class Trained:
    """What an adapter trains, by full names in the model's order; biases come on top (LoraConfig.bias)."""

    adapters: tuple[Adapted, ...]
    saved: tuple[str, ...]
    """modules that are trained in full"""
    tokens: tuple[int, ...]
    """rows of the input embedding that are trained"""


def ends(name: str, key: str) -> bool:
    """Whether a full name is ``key``, or ends in it at a dot."""
    return name == key or name.endswith(f".{key}")


def is_all_linear(lora: LoraConfig) -> bool:
    """Whether every linear layer but the output head is meant."""
    return lora.target_modules == [ALL_LINEAR]


def targeted(lora: LoraConfig, modules: Modules, exclude: bool = True) -> list[str]:
    """The linear layers that get an adapter; without ``exclude`` also those of exclude_modules."""
    saved, layers = saved_modules(lora, modules), lora.layers_to_transform
    return [
        name
        for name in modules.linear
        if (is_all_linear(lora) or any(ends(name, key) for key in lora.target_modules))
        and name not in saved
        and (not layers or modules.layer_of(name) in layers)
        and not (exclude and any(ends(name, key) for key in lora.exclude_modules or ()))
    ]


def saved_modules(lora: LoraConfig, modules: Modules) -> tuple[str, ...]:
    """The modules that are trained in full."""
    keys = lora.modules_to_save or ()
    return tuple(name for name in modules.names if any(ends(name, key) for key in keys))


def comes_apart(lora: LoraConfig, modules: Modules) -> bool:
    """Whether a tied embedding and its head become two, since one of them is trained in full."""
    return modules.tied and bool({modules.embedding, modules.head} & set(saved_modules(lora, modules)))


def pattern_of(patterns: Mapping[str, int], name: str) -> str | None:
    """The first pattern that stands for a layer: a regular expression for its name or for what follows a dot in it
    [utils/other.py: get_pattern_key]."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)


def trained(lora: LoraConfig, modules: Modules) -> Trained:
    """Everything that is trained, of settings without ``faults``."""
    ranks, alphas = lora.rank_pattern, lora.alpha_pattern
    adapters = tuple(
        Adapted(
            name,
            ranks.get(pattern_of(ranks, name) or "", lora.r),
            alphas.get(pattern_of(alphas, name) or "", lora.alpha),
        )
        for name in targeted(lora, modules)
    )
    return Trained(adapters, saved_modules(lora, modules), tuple(lora.trainable_token_indices or ()))


def trained_biases(lora: LoraConfig, found: Trained, modules: Modules) -> frozenset[str]:
    """The base's own biases that are trained; those of ``found.saved`` stay as they are beside their copies."""
    if lora.bias == "all":
        return frozenset(name for name in modules.biases if name.rpartition(".")[0] not in found.saved)
    if lora.bias == "lora_only":
        return frozenset(f"{adapter.name}.bias" for adapter in found.adapters) & modules.biases
    return frozenset()


def first_layer(lora: LoraConfig, found: Trained, modules: Modules) -> int:
    """The first decoder layer that the backward pass reaches: below it activations are not kept. As many as there are
    layers where only what follows them is trained."""
    if found.tokens or lora.bias == "all" or modules.layers is None:
        return 0
    start = modules.names.index(modules.layers)
    before = set(modules.names[:start])
    reached = [adapter.name for adapter in found.adapters] + list(found.saved)
    layers = [modules.layer_of(name) for name in reached]
    known = [
        0 if name in before else modules.count if layer is None else layer
        for name, layer in zip(reached, layers, strict=True)
    ]
    return min(known, default=0)


def peft_targets(lora: LoraConfig, modules: Modules | None) -> tuple[list[str] | str, list[int] | None]:
    """target_modules and layers_to_transform as peft is given them.

    all-linear is written out: peft takes it for the layers of a model that it sees, refuses it beside
    layers_to_transform, and takes routers that are no linear layers. Last parts of names are enough where no other
    module ends in one; else the layers are named in full, which peft takes without regard to layers_to_transform.
    """
    layers = list(lora.layers_to_transform) if lora.layers_to_transform else None
    if not is_all_linear(lora):
        return list(lora.target_modules), layers
    if modules is None:
        return ALL_LINEAR, layers
    ends_of = last_parts(modules.linear)
    others = set(modules.names) - set(modules.linear)
    if any(ends(name, key) for name in others for key in ends_of):
        return targeted(lora, modules, exclude=False), None
    return ends_of, layers


def listed(values: Sequence[object] | Mapping[str, int]) -> str:
    """A list or a mapping as it is written in an override."""
    if isinstance(values, Mapping):
        return "{" + ",".join(f"{key}:{value}" for key, value in values.items()) + "}"
    return f"[{','.join(map(str, values))}]"


def last_parts(names: Iterable[str]) -> list[str]:
    """The last parts of dotted names, each once, in their order."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


# What gives queries and values, over all families: the first that a model has whole is its own choice.
CHOICES: tuple[tuple[str, ...], ...] = (
    *(("q_proj", "v_proj"), ("query", "value"), ("q_proj", "kv_b_proj"), ("q_b_proj", "kv_b_proj")),
    *(("qkv_proj",), ("query_key_value",), ("c_attn",), ("Wqkv",), ("Wq", "Wv"), ("kv_proj",)),
    *(("receptance", "value"), ("in_proj",)),
)
