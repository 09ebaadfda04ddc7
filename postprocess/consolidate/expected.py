"""Names and shapes of a model's tensors, by its config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.architecture.family_table import FAMILIES
from launcher.architecture.tensors import base_tensors
from launcher.config.schema import ArchitectureConfig
from launcher.errors import TrntuneError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelConfig:
    """A config.json, read."""

    path: Path
    values: dict[str, Any]

    @cached_property
    def shapes(self) -> Shapes:
        """Every tensor that a model directory of this config has; a tied output embedding is none of its own.

        Raises TrntuneError for a config that names no model.
        """
        if self.values.get("model_type") not in FAMILIES:
            return self._by_transformers()
        return {tensor.name: tensor.shape for tensor in base_tensors(self._facts)}

    @property
    def tied(self) -> bool:
        """Whether the output embedding is the input embedding."""
        return bool(self.values.get("tie_word_embeddings", False))

    @property
    def head_dim(self) -> int:
        return int(self.values.get("head_dim") or self.size("hidden_size") // self.heads)

    @property
    def heads(self) -> int:
        return self.size("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        return int(self.values.get("num_key_value_heads") or self.heads)

    def size(self, key: str) -> int:
        """A number that every config of a known family gives. Raises TrntuneError."""
        value = self.values.get(key)
        if type(value) is not int or value < 1:
            raise TrntuneError(f"{self.path}: {key} is {value!r}, not a number")
        return value

    @property
    def _facts(self) -> ArchitectureConfig:
        """Of a known family. Raises TrntuneError for one that lacks a size."""
        family = str(self.values["model_type"])
        return ArchitectureConfig(
            family=family,
            hidden_size=self.size("hidden_size"),
            intermediate_size=self.size("intermediate_size"),
            layers=self.size("num_hidden_layers"),
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.size("vocab_size"),
            tied_embeddings=self.tied,
            attention_bias=bool(self.values.get("attention_bias", False)),
            mlp_bias=FAMILIES[family].may_bias_mlp and bool(self.values.get("mlp_bias", False)),
        )

    def _by_transformers(self) -> Shapes:
        from trainer.probes.model import on_meta

        return {name: tuple(parameter.shape) for name, parameter in on_meta(self.path.parent).named_parameters()}


def read_config(directory: Path) -> ModelConfig | None:
    """``directory``/config.json, None where there is none. Raises TrntuneError for a file that is no such config."""
    path = directory / "config.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrntuneError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict) or "model_type" not in values:
        raise TrntuneError(f"{path} is not a model's config: it has no model_type")
    return ModelConfig(path, values)
