"""Architecture facts of a model in a local directory, from its config.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.architecture.family_table import FAMILIES
from launcher.config.schema import ArchitectureConfig
from launcher.errors import UsageError
from launcher.model_dir.files import foreign_fault

# Keys of transformers' config.json that every model of these families has.
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def read_config_json(directory: Path) -> dict[str, Any]:
    """The model's own configuration. Raises UsageError when it is not there or not a JSON object."""
    path = directory / "config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = sorted(file.name for file in directory.iterdir())
        why = foreign_fault(names) or "has no config.json; give a directory that transformers saved"
        raise UsageError(f"model.path={directory}: {why}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"model.path={directory}: config.json is not readable as JSON ({error})") from error
    if not isinstance(facts, dict):
        raise UsageError(f"model.path={directory}: config.json is not a JSON object")
    return facts


def _differs(facts: dict[str, Any]) -> bool:
    """Whether the model attends by a window, or turns positions by the length of a row: neither is a plain Llama,
    Granite or Qwen3, and optimum-neuron computes neither."""
    rope = facts.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
    return bool(facts.get("use_sliding_window")) or kind in ("dynamic", "longrope")


def family_of(directory: Path) -> str:
    """The family of a local model in a few words, for a message that refuses it."""
    facts = read_config_json(directory)
    family = str(facts.get("model_type"))
    if family in FAMILIES:
        return f"a {family} model with a window, or with positions that turn by the length of a row"
    return family


def read_architecture(directory: Path) -> ArchitectureConfig | None:
    """The facts of a plain Llama, Granite or Qwen3 model; None for another, whose checks are left to transformers."""
    facts = read_config_json(directory)
    family = facts.get("model_type")
    if family not in FAMILIES or _differs(facts):
        return None
    for name in REQUIRED:
        if type(facts.get(name)) is not int or facts[name] < 1:
            raise UsageError(f"model.path={directory}: config.json needs {name}, a positive integer")
    heads = facts["num_attention_heads"]
    return ArchitectureConfig(
        family=family,
        hidden_size=facts["hidden_size"],
        intermediate_size=facts["intermediate_size"],
        layers=facts["num_hidden_layers"],
        heads=heads,
        kv_heads=facts.get("num_key_value_heads") or heads,
        head_dim=facts.get("head_dim") or facts["hidden_size"] // heads,
        vocab_size=facts["vocab_size"],
        max_positions=facts.get("max_position_embeddings") or 2048,  # transformers' own default for Llama
        tied_embeddings=bool(facts.get("tie_word_embeddings", False)),
        attention_bias=bool(facts.get("attention_bias", False)),
        mlp_bias=FAMILIES[family].may_bias_mlp and bool(facts.get("mlp_bias", False)),
    )
