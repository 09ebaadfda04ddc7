"""Which layers an adapter reaches, by name: peft 0.17's rules as pure functions on the names of a model's modules.

The plan counts by them without importing peft, and training holds what peft made against them (trainer.models.adapt).
What peft takes in silence, or takes otherwise when it reads an adapter back, is a fault here. Names in brackets are
peft's source files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.checks.diagnostic import Diagnostic
from launcher.config.schema import ALL_LINEAR, LoraConfig
from launcher.errors import first, nearest

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


def faults(lora: LoraConfig, modules: Modules, model: str) -> Iterator[Diagnostic]:
    """What can't work on this model, or would be another adapter than the settings say. ``model``: its family."""
    found = [
        *_unknown_targets(lora, modules, model),
        *_bad_layers(lora, modules, model),
        *_bad_saved(lora, modules, model),
    ]
    yield from found
    yield from _bad_tokens(lora, modules)
    if found:  # what follows would be told of layers that are not meant
        return
    yield from _unmatched_excludes(lora, modules)
    yield from _targets_without_layers(lora, modules)
    yield from _bad_patterns(lora, modules)
    yield from _bad_biases(lora, modules, model)


def static_faults(lora: LoraConfig) -> Iterator[Diagnostic]:
    """What can't work on any model."""
    targets, key = lora.target_modules, "lora.target_modules"
    if not targets:
        yield Diagnostic(key, "[]", "no layer gets an adapter", f"name some, such as q_proj, or {ALL_LINEAR}")
    for name in sorted({name for name in targets if targets.count(name) > 1}):
        yield Diagnostic(key, listed(targets), f"{name} is listed twice", "list it once")
    if ALL_LINEAR in targets and len(targets) > 1:
        yield Diagnostic(
            key, listed(targets), f"{ALL_LINEAR} is all of them", f"write lora.target_modules=[{ALL_LINEAR}]"
        )
    start = lora.init_lora_weights
    if start not in STARTS:
        yield Diagnostic("lora.init_lora_weights", start, *_refused_start(start))
    ranks = [lora.r, *lora.rank_pattern.values()]
    if start == "orthogonal" and any(rank % 2 for rank in ranks):
        odd = next(rank for rank in ranks if rank % 2)
        yield Diagnostic(
            "lora.init_lora_weights", start, f"an orthogonal start needs even ranks, and {odd} is one", "take an even r"
        )


STARTS = ("true", "gaussian", "orthogonal")
"""Values of init_lora_weights that begin with the base as it is: B A is zero."""
_CHANGES_BASE = (
    "takes the adapter's first values off the base's weights, so that base + adapter is no longer what was trained, "
    "and a run that goes on would have to make the same base again to the last bit"
)
_NEEDS_DATA = "is made from activations of the data before training, which this project doesn't compute"
_REFUSED = {
    "pissa": _CHANGES_BASE,
    "olora": _CHANGES_BASE,
    "corda": f"{_NEEDS_DATA}, and {_CHANGES_BASE}",
    "eva": f"{_NEEDS_DATA}: without them peft begins as with true, and says nothing",
    "loftq": "quantizes the base and begins with what is lost by it, which the base that it is merged into hasn't lost",
    "false": "begins with a random B, so that the run wouldn't begin with the base, nor eval_loss_before be its loss",
}


def _refused_start(start: str) -> tuple[str, str]:
    why = next((why for name, why in _REFUSED.items() if start.lower().startswith(name)), "is none of peft's")
    return why, f"take one of {', '.join(STARTS)}"


def listed(values: Sequence[object] | Mapping[str, int]) -> str:
    """A list or a mapping as it is written in an override."""
    if isinstance(values, Mapping):
        return "{" + ",".join(f"{key}:{value}" for key, value in values.items()) + "}"
    return f"[{','.join(map(str, values))}]"


def last_parts(names: Iterable[str]) -> list[str]:
    """The last parts of dotted names, each once, in their order."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


# What gives queries and values, over all families: the first that a model has whole is its own choice.
_CHOICES: tuple[tuple[str, ...], ...] = (
    *(("q_proj", "v_proj"), ("query", "value"), ("q_proj", "kv_b_proj"), ("q_b_proj", "kv_b_proj")),
    *(("qkv_proj",), ("query_key_value",), ("c_attn",), ("Wqkv",), ("Wq", "Wv"), ("kv_proj",)),
    *(("receptance", "value"), ("in_proj",)),
)
# Layers of Llama, which the choices of conf/lora name: in another family they are no slip of the pen.
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def own_choice(leaves: Sequence[str]) -> list[str]:
    """Of the names of a family's layers those that give queries and values, as q_proj and v_proj do in Llama; all of
    them where it has no such layers."""
    return next((list(choice) for choice in _CHOICES if set(choice) <= set(leaves)), list(leaves))


def _did_you_mean(name: str, allowed: Sequence[str]) -> str:
    near = nearest(name, allowed)
    return f"did you mean {near}?" if near else ""


def _unknown_targets(lora: LoraConfig, modules: Modules, model: str) -> Iterator[Diagnostic]:
    if is_all_linear(lora):
        return
    allowed = last_parts(modules.linear)
    for target in lora.target_modules:
        if not any(ends(name, target) for name in modules.linear):
            refused = dict(modules.refused).get(target.rpartition(".")[2])
            why = f"{refused or f'{model} has no linear layer {target}'}: allowed are {', '.join(allowed)}"
            slip = _did_you_mean(target, allowed) if target not in _LLAMA and not refused else ""
            choice = f"take lora.target_modules={listed(own_choice(allowed))}, or [{ALL_LINEAR}] for all of them"
            yield Diagnostic("lora.target_modules", listed(lora.target_modules), why, slip or choice)


def _bad_layers(lora: LoraConfig, modules: Modules, model: str) -> Iterator[Diagnostic]:
    """peft leaves layers out that aren't there, and doesn't look at layers_to_transform for a layer named in full
    [tuners/tuners_utils.py: check_target_module_exists]."""
    layers, key = lora.layers_to_transform, "lora.layers_to_transform"
    if not layers:
        return
    if modules.layers is None:
        yield Diagnostic(
            key, listed(layers), f"{model} has no one list of decoder layers", "name the layers in target_modules"
        )
        return
    for layer in layers:
        if layer >= modules.count:
            yield Diagnostic(key, listed(layers), f"{model} has no layer {layer}", f"they are 0 to {modules.count - 1}")
    for target in lora.target_modules:
        if target in modules.linear:
            why = f"peft adapts {target}, which is named in full, whatever layers are asked for"
            yield Diagnostic(
                key, listed(layers), why, f"name {target.rpartition('.')[2]}, or leave layers_to_transform out"
            )


def _bad_saved(lora: LoraConfig, modules: Modules, model: str) -> Iterator[Diagnostic]:
    """peft takes every module whose name ends in the text, at a dot or not [utils/other.py: _set_trainable]."""
    given, key = lora.modules_to_save or [], "lora.modules_to_save"
    for entry in given:
        meant = [name for name in modules.names if ends(name, entry)]
        taken = [name for name in modules.names if name.endswith(entry)]
        blocks = [name for name in meant if name not in modules.leaves]
        if not meant:
            near = _did_you_mean(entry, sorted(last_parts(modules.leaves)))
            yield Diagnostic(key, listed(given), f"{model} has no module {entry}", near)
        elif blocks:
            why = f"{blocks[0]} is no single layer with weights"
            yield Diagnostic(key, listed(given), why, "name linear layers, norms or the embedding")
        elif taken != meant:
            shown = first(taken, MAX_NAMES)
            why = f"peft takes every module whose name ends in {entry}, {len(taken)} of them: {shown}"
            remedy = f"name those that are meant in full, such as {meant[0]}"
            yield Diagnostic(key, listed(given), why, remedy)


def _bad_tokens(lora: LoraConfig, modules: Modules) -> Iterator[Diagnostic]:
    tokens, key = lora.trainable_token_indices, "lora.trainable_token_indices"
    if not tokens:
        return
    twice = next((token for token in tokens if tokens.count(token) > 1), None)
    beyond = next((token for token in tokens if token >= modules.vocabulary), None)
    if modules.no_tokens:
        yield Diagnostic(key, listed(tokens), modules.no_tokens, "train the embedding in full: modules_to_save")
    elif modules.embedding in saved_modules(lora, modules):
        yield Diagnostic(
            key, listed(tokens), f"modules_to_save trains all of {modules.embedding}", "leave one of them out"
        )
    elif modules.tied and modules.head in saved_modules(lora, modules):
        yield Diagnostic(
            key, listed(tokens), f"modules_to_save trains all of {modules.head}, which is tied", "leave one out"
        )
    elif twice is not None:
        yield Diagnostic(key, listed(tokens), f"{twice} is listed twice", "list it once")
    elif beyond is not None:
        yield Diagnostic(
            key, listed(tokens), f"{beyond} is no row of the embedding", f"they are 0 to {modules.vocabulary - 1}"
        )


def _unmatched_excludes(lora: LoraConfig, modules: Modules) -> Iterator[Diagnostic]:
    """peft says nothing of an entry that excludes nothing."""
    candidates = targeted(lora, modules, exclude=False)
    for entry in lora.exclude_modules or ():
        if not any(ends(name, entry) for name in candidates):
            shown = first(candidates, MAX_NAMES)
            why = f"{entry} is none of the {len(candidates)} layers that get an adapter ({shown})"
            parts = sorted(last_parts(candidates))
            yield Diagnostic(
                "lora.exclude_modules", listed(lora.exclude_modules or ()), why, _did_you_mean(entry, parts)
            )


def _targets_without_layers(lora: LoraConfig, modules: Modules) -> Iterator[Diagnostic]:
    """A target all of whose layers are taken away by other settings."""
    left = targeted(lora, modules)
    for target in lora.target_modules:
        if not any(target == ALL_LINEAR or ends(name, target) for name in left):
            why = f"no layer is left for {target} beside exclude_modules, modules_to_save and layers_to_transform"
            yield Diagnostic("lora.target_modules", listed(lora.target_modules), why, "leave it out here or there")
    if is_all_linear(lora) and not left:
        why = "no layer is left beside exclude_modules, modules_to_save and layers_to_transform"
        yield Diagnostic("lora.target_modules", listed(lora.target_modules), why, "change one of them")


def _bad_patterns(lora: LoraConfig, modules: Modules) -> Iterator[Diagnostic]:
    """Patterns that stand for no layer, which peft doesn't tell; and those that stand for one layer with different
    values: peft takes the first, and adapter_config.json has them by the alphabet [config.py: save_pretrained]."""
    names = targeted(lora, modules)
    for setting in ("rank_pattern", "alpha_pattern"):
        patterns, key = getattr(lora, setting), f"lora.{setting}"
        broken = [pattern for pattern in patterns if not _is_pattern(pattern)]
        for pattern in broken:
            yield Diagnostic(
                key,
                listed(patterns),
                f"{pattern} is no regular expression",
                "such as q_proj, or layers.0.* for all of a layer",
            )
        if broken:
            continue
        for pattern in patterns:
            if not any(pattern_of({pattern: 0}, name) for name in names):
                parts = sorted(last_parts(names))
                why = f"{pattern} stands for none of the {len(names)} layers that get an adapter"
                yield Diagnostic(key, listed(patterns), why, _did_you_mean(pattern, parts))
        yield from _conflicts(key, patterns, names)


def _conflicts(key: str, patterns: Mapping[str, int], names: Sequence[str]) -> Iterator[Diagnostic]:
    for name in names:
        both = [pattern for pattern in patterns if pattern_of({pattern: 0}, name)]
        if len({patterns[pattern] for pattern in both}) > 1:
            values = " and ".join(f"{patterns[pattern]} by {pattern}" for pattern in both)
            order = "peft takes the first of them here, and the alphabetically first when it reads the adapter"
            why = f"{name} is {values}: {order}"
            yield Diagnostic(key, listed(patterns), why, "let each layer have one pattern")
            return


def _is_pattern(text: str) -> bool:
    try:
        re.compile(rf"(.*\.)?({text})$")
    except re.error:
        return False
    return True


def _bad_biases(lora: LoraConfig, modules: Modules, model: str) -> Iterator[Diagnostic]:
    if lora.bias == "all" and not modules.biases:
        yield Diagnostic("lora.bias", lora.bias, f"{model} has no biases", "leave it out")
    names = targeted(lora, modules)
    if lora.bias == "lora_only" and not any(f"{name}.bias" in modules.biases for name in names):
        yield Diagnostic("lora.bias", lora.bias, "no layer that gets an adapter has a bias", "leave it out")
