"""Where transformers 4.57 and 5 differ in what this project leans on: nothing else asks for transformers' version.

docs/dependencies.md has the list of all that is relied on, and which test holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.masking_utils import sdpa_mask

MAJOR = int(transformers.__version__.partition(".")[0])

FINDS_MORE_NAMES = MAJOR >= 5
"""Whether weights are read whose names lack the model's prefix though a head is among them, and an embedding that is
stored as its tied head alone. launcher.model_dir.weights refuses both on either: a plan may be made elsewhere."""


def recompute_activations(model: PreTrainedModel) -> None:
    """Have the backward pass compute each layer's activations again; 5.24 has another name for it, and says so to
    whoever trains."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@dataclass(frozen=True)
class Queries:
    """The positions that a mask is asked for, from ``offset`` on."""

    length: int
    offset: int
    device: torch.device

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Queries:
        """Of what transformers calls a mask function with."""
        if MAJOR < 5:
            positions = arguments["cache_position"]
            return cls(positions.shape[0], int(positions[0]), positions.device)
        return cls(arguments["q_length"], int(arguments["q_offset"]), torch.device(arguments["device"]))

    def arguments(self) -> dict[str, Any]:
        """What transformers calls a mask function with: cache_position [length] in 4.57, numbers since 5
        (masking_utils.py)."""
        if MAJOR < 5:
            end = self.offset + self.length
            return {"cache_position": torch.arange(self.offset, end, device=self.device)}
        return {"q_length": self.length, "q_offset": self.offset, "device": self.device}


def written_out_mask(
    batch_size: int, queries: Queries, kv_length: int, kv_offset: int, mask_function: Callable[..., Any]
) -> torch.Tensor:
    """transformers' boolean mask [B, 1, q, kv] of a pattern, never skipped."""
    what = {"batch_size": batch_size, "kv_length": kv_length, "kv_offset": kv_offset, "mask_function": mask_function}
    make: Any = sdpa_mask
    made: torch.Tensor = make(**what, **queries.arguments(), allow_is_causal_skip=False)
    return made


def setting(config: Any, name: str) -> Any:
    """A setting of a model's configuration, None where it has none of that name. Where layers have different ones, as
    since 5 some families may (integrations/heterogeneity), numbers are their mean, rounded."""
    layers = getattr(config, "per_layer_config", None) if getattr(config, "is_heterogeneous", False) else None
    if layers is None:
        return getattr(config, name, None)
    found: list[Any] = [getattr(layer, name, None) for layer in layers]
    if any(value != found[0] for value in found) and all(isinstance(value, int) for value in found):
        return round(sum(found) / len(found))
    return found[0]


NAMES_AS_IN_THE_MODEL: dict[str, Any] = {} if MAJOR < 5 else {"save_original_format": False}
"""What has save_pretrained write the tensors that it is given under their names: since 5 it computes those of the files
from them, such as single experts', and needs them whole for it."""


@dataclass(frozen=True)
class Made:
    """A parameter or buffer as loading makes it: of which tensors in files (``sources``), and whether it is the only
    one of them, unchanged (``as_is``)."""

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    as_is: bool = True


def made_of(model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]]) -> dict[str, Made]:
    """The parameters that loading makes of tensors in files, given with their shapes, each by its name in the model.

    4.57 reads each tensor by its parameter's name, with or without the model's prefix. Since 5 a family has its list of
    renamings and conversions (conversion_mapping.py), such as of single experts into one parameter of all.
    """
    return _by_prefix(model, stored) if MAJOR < 5 else _by_conversions(model, stored)


def _by_prefix(model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]]) -> dict[str, Made]:
    found = {}
    for name in model.state_dict():
        key = name if name in stored else name.removeprefix(f"{model.base_model_prefix}.")
        if key in stored:
            found[name] = Made((key,), stored[key])
    return found


def _transforms(model: PreTrainedModel) -> tuple[Any, list[Any], list[Any]]:
    """transformers 5's module that loads weights, and the renamings and conversions of this model's family."""
    loading: Any = import_module("transformers.core_model_loading")
    found = import_module("transformers.conversion_mapping").get_model_conversion_mapping(model)
    renamings = [each for each in found if isinstance(each, loading.WeightRenaming)]
    return loading, renamings, [each for each in found if isinstance(each, loading.WeightConverter)]


def _by_conversions(model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]]) -> dict[str, Made]:
    """In the steps of core_model_loading.convert_and_load_state_dict_in_model, on tensors without storage."""
    loading, renamings, converters = _transforms(model)
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    prefix, places = model.base_model_prefix, model.state_dict()
    found: dict[str, Made] = {}
    parts: dict[str, tuple[Any, list[str]]] = {}
    for name in sorted(stored, key=loading.dot_natural_key):
        place, pattern = loading.rename_source_key(name, renamings, converters, prefix, places)
        if place not in places and name in places:
            place, pattern = name, None
        if place not in places:
            continue
        if pattern is None:
            if place not in found or name == place:
                found[place] = Made((name,), stored[name])
            continue
        converter, sources = parts.setdefault(place, (deepcopy(by_pattern[pattern]), []))
        converter.add_tensor(place, name, pattern, torch.empty(stored[name], device="meta"))
        sources.append(name)
    for place, (converter, sources) in parts.items():
        found.update(_converted(model, place, converter, tuple(sources)))
    return found


def _converted(model: PreTrainedModel, place: str, converter: Any, sources: tuple[str, ...]) -> dict[str, Made]:
    """What a conversion makes of its tensors; nothing where they don't fit together."""
    try:
        made = converter.convert(place, model=model, config=model.config)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError):
        return {}
    whole = {name: each[0] if isinstance(each, list) else each for name, each in made.items()}
    return {name: Made(sources, tuple(tensor.shape), as_is=False) for name, tensor in whole.items()}


def parts_of_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Last parts of the names, in files, of layers that loading makes other parameters of: single experts' since 5."""
    if MAJOR < 5:
        return frozenset()
    loading, _, converters = _transforms(model)
    merged = [each for each in converters if any(isinstance(op, loading.MergeModulelist) for op in each.operations)]
    names = [pattern.removesuffix(".weight") for each in merged for pattern in each.source_patterns]
    return frozenset(name.rpartition(".")[2] for name in names)
