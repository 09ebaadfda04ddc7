"""What an adapter does to which weight, asked of transformers and peft themselves: the adapted model is built without
storage (device "meta"), so targets, patterns, ranks, scalings and layer types are peft's own, not a second guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Embedding, Linear, LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from launcher.errors import TrntuneError, first, in_first_line
from launcher.model_dir.weights import check_not_quantized
from launcher.run_dir.provenance import installed
from postprocess.merge.adapter import WEIGHTS, Adapter, renamed
from postprocess.merge.apply import DELTA, duplicate, wrapped
from postprocess.merge.apply import NAME as _NAME
from postprocess.merge.changes import AddBias, Change, LowRank, Replace, ReplaceRows
from postprocess.merge.renames import PREFIX as _PREFIX
from postprocess.merge.renames import fitting, proposed
from postprocess.merge.vocabulary import Vocabulary, plain_name, vocabulary_of
from postprocess.safetensors.header import SourceTensor
from trainer.libraries.transformers_versions import Made, made_of
from trainer.models.stored import not_finite_text, stored_tensors

logging.set_verbosity_error()
logging.disable_progress_bar()


@dataclass
class Layout:
    """The base's parameters and what becomes of them.

    ``shapes``: every parameter by its name in the model. ``made``: of which of the base's tensors each is made.
    ``embedding``: the input embedding. ``ties``: groups of names that are one parameter, the input embedding first.
    ``changes``: the steps on each changed parameter, in order; the names of a tie have their own, since peft adapts
    modules, not parameters. ``resized``: how the vocabulary was resized for training; ``base_shapes``: the shapes that
    differ in the base by that.
    """

    shapes: dict[str, tuple[int, ...]]
    made: Mapping[str, Made]
    embedding: str | None = None
    ties: list[list[str]] = field(default_factory=list)
    changes: dict[str, list[Change]] = field(default_factory=dict)
    resized: Vocabulary | None = None
    base_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def tie_of(self, name: str) -> list[str]:
        return next((tie for tie in self.ties if name in tie), [name])


def read_layout(base: Path, tensors: Mapping[str, SourceTensor], adapter: Adapter) -> Layout:
    """The layout of ``adapter`` on the model of ``base``'s config.json. ``tensors``: the base's, by names in files.

    Raises TrntuneError for a model that transformers doesn't know, an adapter that doesn't fit it, tensors of the
    adapter that match nothing or have another shape, and missing ones.
    """
    model = _model(base)
    resized = vocabulary_of(adapter, model)
    shapes = _shapes(model)
    if resized is not None:
        model = _model(base, resized.rows)
    embedding = _embedding(model)
    layout = Layout(
        _shapes(model),
        made_of(model, {name: source.spec.shape for name, source in tensors.items()}),
        embedding,
        ties_of(model),
        resized=resized,
        base_shapes=shapes if resized is not None else {},
    )
    modules = [name for name, _ in model.named_modules()]
    try:
        _fill(layout, model, adapter)
    except TrntuneError as error:
        if adapter.renames or not (rules := fitting(adapter.tensors, modules)):
            raise
        try:
            read_layout(base, tensors, renamed(adapter, rules))
        except TrntuneError:  # names that fit alone are no proposal
            raise error from None
        raise TrntuneError(f"{error}; {proposed(rules)}") from None
    return layout


def _fill(layout: Layout, model: Any, adapter: Adapter) -> None:
    """Note what the adapter does to each parameter."""
    adapted = wrapped(model, adapter, low_cpu_mem_usage=True)
    known = {name.replace(f".{_NAME}", ""): tuple(tensor.shape) for name, tensor in adapted.state_dict().items()}
    wanted = _Wanted(layout, adapter)
    for name, module in adapted.named_modules():
        wanted.add(name, module)
    wanted.check(known)
    wanted.add_plain()


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}


def _model(base: Path, rows: int | None = None) -> Any:
    """The base without storage; with another vocabulary where its rows are given."""
    check_not_quantized(base)
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TrntuneError(f"{base}: its config.json can't be used: {in_first_line(error)}") from None
    if rows is not None:
        config.get_text_config().vocab_size = rows
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, ImportError) as error:
        raise TrntuneError(
            f"{base}: transformers has no causal language model for it: {in_first_line(error)}"
        ) from None


def _embedding(model: Any) -> str | None:
    weight = model.get_input_embeddings().weight
    return next((name for name, parameter in model.named_parameters() if parameter is weight), None)


def ties_of(model: Any) -> list[list[str]]:
    """Names that stand for one parameter, the input embedding's first."""
    embedding = _embedding(model)
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [sorted(names, key=lambda name: name != embedding) for names in groups.values() if len(names) > 1]


class _Wanted:
    """Collects the changes module by module, and which of the adapter's tensors they take."""

    def __init__(self, layout: Layout, adapter: Adapter) -> None:
        self.layout, self.adapter = layout, adapter
        self.keys: set[str] = set()
        self.shapes: dict[str, tuple[int, ...]] = {}  # of tensors that replace one of the base's

    def add(self, name: str, module: nn.Module) -> None:
        """Note what ``module`` of the adapted model does."""
        path = name.removeprefix(_PREFIX)
        if isinstance(module, LoraLayer):
            self._add_lora(name, path, module)
        elif isinstance(module, ModulesToSaveWrapper):
            for parameter, _ in module.modules_to_save[_NAME].named_parameters():
                self._put(f"{path}.{parameter}", Replace(f"{name}.{parameter}"))
        elif isinstance(module, TrainableTokensWrapper):
            self._add_tokens(name, path, module)

    def check(self, known: Mapping[str, tuple[int, ...]]) -> None:
        """Raise TrntuneError unless the file has every wanted tensor, no unknown one, and all in the model's shape."""
        found, file = self.adapter.tensors, self.adapter.directory / WEIGHTS
        astray = sorted(key for key in found if key not in known and not self._alias(key, known))
        if astray:
            raise TrntuneError(f"{file}: {len(astray)} tensors match nothing in the base: {first(astray)}")
        missing = sorted(key for key in self.keys if key not in found)
        if missing:
            raise TrntuneError(
                f"{file}: {len(missing)} tensors that its configuration asks for are missing: {first(missing)}"
            )
        for key, entry in found.items():
            shape = self.shapes.get(key) or known.get(key) or known.get(f"{key}.weight")
            shape = shape or self.layout.shapes.get(plain_name(key))
            if shape is not None and shape != entry.shape:
                raise TrntuneError(
                    f"{file}: {key} has shape {list(entry.shape)}, but base and configuration need {list(shape)}: "
                    "another base, or another rank than the configuration says"
                )

    def add_plain(self) -> None:
        """The file's other tensors stand for parameters of the base itself: trained biases, embeddings saved along."""
        for key in self.adapter.tensors:
            if key in self.keys or duplicate(key) or key.endswith(DELTA):
                continue
            name = plain_name(key)
            if name not in self.layout.shapes:
                raise TrntuneError(f"{self.adapter.directory / WEIGHTS}: {key} matches nothing in the base")
            for tied in self.layout.tie_of(name):
                self.layout.changes.setdefault(tied, []).insert(0, Replace(key))

    def _alias(self, key: str, known: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether the model has the tensor under another name than files do: wrapped modules, DoRA's magnitudes, and
        parameters of adapted layers as peft called them before 0.7."""
        return (
            key in self.keys or f"{key}.weight" in known or plain_name(key) in self.layout.shapes or self._follows(key)
        )

    def _follows(self, key: str) -> bool:
        """Whether these are the rows of a tied embedding, which its head shares."""
        module = key.removesuffix(DELTA)
        return module != key and f"{self._token_owner(module.removeprefix(_PREFIX))}{DELTA}" in self.keys

    def _put(self, name: str, change: Change) -> None:
        if name not in self.layout.shapes:
            raise TrntuneError(
                f"{self.adapter.directory}: {change.keys()[0]} needs {name}, which the base doesn't have"
            )
        self.layout.changes.setdefault(name, []).append(change)
        self.keys.update(change.keys())
        if isinstance(change, Replace):
            self.shapes[change.key] = self.layout.shapes[name]

    def _add_lora(self, name: str, path: str, layer: LoraLayer) -> None:
        if isinstance(layer, ParamWrapper):  # target_parameters themselves were refused before
            raise TrntuneError(
                f"{self.adapter.directory}: it adapts experts one by one, and {path} is one parameter of all experts "
                f"in transformers {installed('transformers')}: merge it with transformers 4.57"
            )
        if type(layer) not in (Linear, Embedding):
            kind = type(layer.get_base_layer()).__name__
            raise TrntuneError(
                f"{self.adapter.directory}: {path} is a {kind}; only linear layers and embeddings are merged"
            )
        embedding = isinstance(layer, Embedding)
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        magnitude = f"{name}.lora_magnitude_vector" if _NAME in layer.lora_variant else None
        transposed = embedding or bool(getattr(layer, "fan_in_fan_out", False))
        scaling = float(layer.scaling[_NAME])
        self._put(f"{path}.weight", LowRank(f"{name}.{a}", f"{name}.{b}", scaling, transposed, magnitude))
        if layer.lora_bias[_NAME] and not embedding:
            self._put(f"{path}.bias", AddBias(f"{name}.lora_B.bias", scaling))

    def _add_tokens(self, name: str, path: str, wrapper: TrainableTokensWrapper) -> None:
        """A tied output embedding follows the input embedding's rows; its own file entry doesn't exist."""
        tokens = wrapper.token_adapter
        owner = name if tokens.tied_adapter is None else self._token_owner(path)
        indices = tuple(int(index) for index in tokens.token_indices[_NAME])
        self._put(f"{path}.weight", ReplaceRows(f"{owner}{DELTA}", indices))

    def _token_owner(self, path: str) -> str:
        return _PREFIX + self.layout.tie_of(f"{path}.weight")[0].removesuffix(".weight")


def check_finite(adapter: Adapter) -> None:
    """Raise TrntuneError that names a tensor of the adapter with a NaN or an infinite number."""
    fault = not_finite_text(stored_tensors([adapter.weights]))
    if fault is not None:
        raise TrntuneError(
            f"{adapter.weights}: {fault}: take an earlier checkpoint, and train with a lower learning rate"
        )
