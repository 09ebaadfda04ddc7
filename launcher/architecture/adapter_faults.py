"""What is wrong with the settings of an adapter, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from launcher.architecture.adapters import (
    CHOICES,
    MAX_NAMES,
    Modules,
    ends,
    is_all_linear,
    last_parts,
    listed,
    pattern_of,
    saved_modules,
    targeted,
)
from launcher.architecture.family_table import LINEAR_NAMES
from launcher.checks.diagnostic import Diagnostic
from launcher.config.schema import ALL_LINEAR, LoraConfig
from launcher.errors import first, nearest


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


# Layers of Llama, which the choices of conf/lora name: in another family they are no slip of the pen.


def own_choice(leaves: Sequence[str]) -> list[str]:
    """Of the names of a family's layers those that give queries and values, as q_proj and v_proj do in Llama; all of
    them where it has no such layers."""
    return next((list(choice) for choice in CHOICES if set(choice) <= set(leaves)), list(leaves))


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
            slip = _did_you_mean(target, allowed) if target not in LINEAR_NAMES and not refused else ""
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
