"""What may differ when a run directory is started again: the run must stay the one that it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from launcher.checks.diagnostic import Diagnostic
from launcher.config.fields import keys, nodes
from launcher.config.schema import Config
from launcher.errors import UsageError, nearest

ALLOW = "training.allow_config_change"

# Says nothing about what is trained: it may differ every time.
FREE = (
    *("plan", "cluster", "stages", "dry_run", "merge", "generate", ALLOW),
    *("accelerator.stages", "accelerator.neuron.cache_dir", "accelerator.neuron.on_new_graph"),
    *(f"accelerator.torch_neuron.{name}" for name in ("cache_dir", "on_new_graph", "on_host_operator")),
)
# Gives the weights and the position in the data their meaning: with another value there is no going on.
FIXED = (
    "model",
    "dataset",
    "method.name",
    "lora.r",
    "lora.alpha",
    "lora.target_modules",
    "lora.use_dora",
    "lora.use_rslora",
    *("lora.rank_pattern", "lora.alpha_pattern", "lora.modules_to_save", "lora.trainable_token_indices", "lora.bias"),
    *("lora.exclude_modules", "lora.layers_to_transform", "lora.init_lora_weights", "lora.quantize_base"),
    "seed",
    "training.max_length",
    "training.global_batch_size",
)
# Fixed settings that checkpoints of earlier versions don't have, and what those were made with.
LATER = {
    **{"lora.bias": "none", "lora.init_lora_weights": "true", "lora.quantize_base": None},
    **{"model.architecture.attention_bias": False, "model.architecture.mlp_bias": False},
    **{"dataset.weights": [], "dataset.split": "train", "dataset.too_long": "cut"},
    **{f"dataset.columns.{name}": name for name in ("prompt", "completion", "text")},
}
# Where the same model or data lies; their contents are compared by hash.
PLACES = ("model.path", "dataset.path", "dataset.eval_path", "dataset.chat_template")


@dataclass(frozen=True)
class Change:
    """One key with another value than the run was started with."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {_written(self.before)} there, {_written(self.after)} here"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def under(key: str, names: tuple[str, ...] | list[str]) -> bool:
    """True when ``key`` is one of ``names`` or lies in one of these groups."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def describes(config: Config) -> dict[str, Any]:
    """Dotted keys and values of everything that says what is trained and how."""
    return {key: value for key, value in flatten(asdict(config)).items() if not under(key, FREE)}


def config_sha256(config: Config) -> str:
    """Hash of what ``describes`` the run."""
    return hashlib.sha256(json.dumps(describes(config), sort_keys=True).encode()).hexdigest()


def fixed_part(config: Config) -> dict[str, Any]:
    """The settings that a checkpoint can't be used without."""
    return since({key: value for key, value in describes(config).items() if is_fixed(key)})


def since(fixed: dict[str, Any]) -> dict[str, Any]:
    """Fixed settings without those that mean the same as none, as in checkpoints of earlier versions."""
    return {key: value for key, value in fixed.items() if key not in LATER or value != LATER[key]}


def is_fixed(key: str) -> bool:
    """True for a key that can't change within a run."""
    return under(key, FIXED) and key not in PLACES


def changes(before: Config, after: Config) -> list[Change]:
    """Every key that differs, in the schema's order."""
    old, new = describes(before), describes(after)
    names = dict.fromkeys([*old, *new])
    return [Change(key, old.get(key), new.get(key)) for key in names if old.get(key) != new.get(key)]


def check_changes(found: list[Change], allowed: list[str], where: str) -> None:
    """Raise UsageError for changes that are not allowed, and for those that never are."""
    fixed = [change for change in found if is_fixed(change.key)]
    if fixed:
        raise UsageError(
            f"{where} was started with another {fixed[0].key} ({_listed(fixed)}), which can't change within a run: "
            "give another hydra.run.dir, or leave it out"
        )
    refused = [change for change in found if not under(change.key, allowed)]
    if refused:
        names = ",".join([*allowed, *(change.key for change in refused)])
        raise UsageError(
            f"{where} was started with another configuration ({_listed(refused)}): start it with the same, or go on "
            f"with the new one by {ALLOW}=[{names}]"
        )


def check_allowed_names(config: Config) -> Iterator[Diagnostic]:
    """Names in training.allow_config_change are keys or groups that may change."""
    for name in config.training.allow_config_change:
        if name not in keys() and name not in nodes():
            near = nearest(name, [*keys(), *nodes()])
            yield Diagnostic(ALLOW, name, "no such key", f"did you mean {near}?" if near else "")
        elif is_fixed(name):
            yield Diagnostic(ALLOW, name, "can't change within a run", "start a new run for it")


def _listed(found: list[Change]) -> str:
    most = 4
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(str(change) for change in found[:most]) + more


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
