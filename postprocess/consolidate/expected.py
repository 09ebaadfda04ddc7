"""Names and shapes of a model's tensors, by its config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError

Shapes = dict[str, tuple[int, ...]]

# The families that optimum-neuron 0.4.5 trains. Known here because importing transformers' models takes longer than
# consolidating a small model; a test holds these against transformers.
_FAMILIES = ("llama", "granite", "qwen3")


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
        if self.values.get("model_type") not in _FAMILIES:
            return self._by_transformers()
        shapes: Shapes = {"model.embed_tokens.weight": (self.size("vocab_size"), self.size("hidden_size"))}
        for layer in range(self.size("num_hidden_layers")):
            shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in self._layer.items()})
        shapes["model.norm.weight"] = (self.size("hidden_size"),)
        if not self.tied:
            shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
        return shapes

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

    @cached_property
    def _layer(self) -> Shapes:
        hidden, inner = self.size("hidden_size"), self.size("intermediate_size")
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        linears = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes: Shapes = {f"{name}.weight": shape for name, shape in linears.items()}
        for name, (rows, _) in linears.items():
            if self.values.get("attention_bias" if name.startswith("self_attn") else "mlp_bias", False):
                shapes[f"{name}.bias"] = (rows,)
        shapes.update({f"{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")})
        if self.values["model_type"] == "qwen3":
            shapes.update({f"self_attn.{name}.weight": (self.head_dim,) for name in ("q_norm", "k_norm")})
        return shapes

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
