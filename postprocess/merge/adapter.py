"""An adapter directory as peft writes it, checked as far as that goes without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError, first
from postprocess.merge.renames import Rename, rename_all, renamed_config
from postprocess.safetensors.header import HeaderEntry, SourceTensor, TensorSpec, read_header
from trainer.models.fingerprint import BASE_FILE

CONFIG = "adapter_config.json"
WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
# peft wrote pickles by itself before 0.7. weights_only reads tensors and runs no code.
_CONVERT = (
    'convert it once, in that directory: python -c "import torch, safetensors.torch as s; '
    f"s.save_file({{k: v.clone() for k, v in torch.load('{PICKLE}', weights_only=True).items()}}, '{WEIGHTS}')\""
)

# Features of LoraConfig that change the merge and that are not implemented here; empty values mean that they are off.
_UNSUPPORTED = {
    "use_qalora": "QALoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on bare parameters",
    "megatron_config": "Megatron's layers",
    "alora_invocation_tokens": "activated LoRA, which cannot be merged",
}
# How training began and what it ran on: files have the values, and some of these would compute for minutes.
OF_THE_START = ("eva_config", "corda_config", "loftq_config", "lora_ga_config", "runtime_config")
# What else is computed, or says nothing of the merge. A release of peft that knows more settings than these would do
# something else by them, which is not what is computed here.
_COMPUTED = frozenset(
    (
        *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
        *("peft_version", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
        *("trainable_token_indices", "fan_in_fan_out", "bias", "lora_bias", "use_dora", "init_lora_weights"),
        *("megatron_core", "qalora_group_size"),  # details of what is refused where it is on
        *OF_THE_START,
    )
)
# peft 0.18. An embedding and its head that were trained in full as one are both in the file, each to be put where it
# belongs. An adapter on them that release itself doesn't merge to what was trained.
TYING = "ensure_weight_tying"
# These initializations subtract something from the base weights, which a plain base then lacks.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# torchtune's export has DoRA's magnitudes so; peft reads both.
_MAGNITUDE = ".lora_magnitude_vector"


@dataclass(frozen=True)
class Adapter:
    """A peft LoRA adapter: its directory, adapter_config.json, and the header of its weights.

    ``tensors`` by peft's names for them; ``names``: what each is called in the file. ``renames``: those asked for.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, HeaderEntry]
    names: Mapping[str, str]
    renames: tuple[Rename, ...] = ()

    @property
    def weights(self) -> Path:
        return self.directory / WEIGHTS

    def source(self, name: str) -> SourceTensor:
        """Where a tensor lies."""
        entry = self.tensors[name]
        return SourceTensor(self.weights, TensorSpec(self.names[name], entry.dtype, entry.shape), entry.begin)

    @property
    def method(self) -> str:
        """lora or dora, with the rank-stabilised scaling named."""
        name = "dora" if self.config.get("use_dora") else "lora"
        return f"{name}, rank-stabilised" if self.config.get("use_rslora") else name

    def base_fingerprint(self) -> str | None:
        """The fingerprint of the base that the adapter was trained on; None where training left none."""
        file = self.directory / BASE_FILE
        if not file.exists():
            return None
        try:
            return str(json.loads(file.read_text(encoding="utf-8"))["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            raise TrntuneError(f"{file} is damaged: no fingerprint in it; copy the adapter again") from None

    def digest(self) -> str:
        """sha256 of configuration and weights, whatever order peft's sets of names were saved in."""
        digest = hashlib.sha256(json.dumps(_ordered(self.config), sort_keys=True).encode())
        with self.weights.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()


def _ordered(value: Any) -> Any:
    """A JSON value with every list of names sorted."""
    if isinstance(value, Mapping):
        return {key: _ordered(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return sorted(value) if all(isinstance(item, str) for item in value) else [_ordered(item) for item in value]
    return value


def read_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json, whatever peft_type it is of. Raises TrntuneError where there is none, or a damaged one."""
    file = directory / CONFIG
    if not file.is_file():
        raise TrntuneError(f"{directory} is not an adapter directory: it has no {CONFIG}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError
    except (OSError, ValueError):
        raise TrntuneError(f"{file} is damaged: it is not a JSON object; copy the adapter again") from None
    return config


def read_adapter(directory: Path, renames: Sequence[Rename] = ()) -> Adapter:
    """Read an adapter directory; ``renames`` are applied to the names of its tensors.

    Raises TrntuneError for anything that is not a LoRA adapter, UsageError for renames that don't fit its names.
    """
    config = read_config(directory)
    _check_kind(directory, config)
    if not (directory / WEIGHTS).is_file():
        pickled = (directory / PICKLE).exists()
        raise TrntuneError(
            f"{directory} has no {WEIGHTS}" + (f", only {PICKLE}, a pickle; {_CONVERT}" if pickled else "")
        )
    return renamed(Adapter(directory, config, *_named(read_header(directory / WEIGHTS))), renames)


def _named(header: Mapping[str, HeaderEntry]) -> tuple[dict[str, HeaderEntry], dict[str, str]]:
    """The tensors by peft's own names, and what each is called in the file."""
    names = {name.removesuffix(".weight") if name.endswith(f"{_MAGNITUDE}.weight") else name: name for name in header}
    return {name: header[stored] for name, stored in names.items()}, names


def renamed(adapter: Adapter, renames: Sequence[Rename]) -> Adapter:
    """The adapter with other names. Raises UsageError for renames that don't fit its names."""
    if not renames:
        return adapter
    old = rename_all(list(adapter.tensors), renames)
    return Adapter(
        adapter.directory,
        renamed_config(adapter.config, old),
        {name: adapter.tensors[was] for name, was in old.items()},
        {name: adapter.names[was] for name, was in old.items()},
        tuple(renames),
    )


def _check_kind(directory: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise TrntuneError(f"{directory}: peft_type {kind} can't be merged here, only LORA (with DoRA and rsLoRA)")


def is_off(value: Any) -> bool:
    """Whether a setting says that something isn't done, as releases of peft write all that they know."""
    return value is None or value is False or value in ([], {}, "")


def ties_in_full(adapter: Adapter) -> bool:
    """Whether an embedding and its head were kept one in training, without an adapter on them."""
    return bool(adapter.config.get(TYING)) and not any(".lora_embedding_" in name for name in adapter.tensors)


def changes_base(config: Mapping[str, Any]) -> bool:
    """Whether training began with other base weights than the base's."""
    return str(config.get("init_lora_weights", "")).lower().startswith(_CHANGES_BASE)


def check_mergeable(adapter: Adapter) -> None:
    """Raise TrntuneError for what this merge would get wrong."""
    directory, config = adapter.directory, adapter.config
    if not isinstance(config.get("lora_alpha", 1), int | float):
        raise TrntuneError(f"{directory}: lora_alpha is {config['lora_alpha']!r} in {CONFIG}, not a number")
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise TrntuneError(f"{directory}: an adapter for task {task} can't be merged here, only CAUSAL_LM")
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            raise TrntuneError(f"{directory}: {key} is set: {what} is not supported by this merge")
    computed = _COMPUTED | ({TYING} if ties_in_full(adapter) else set())
    strange = [key for key, value in config.items() if key not in computed and not is_off(value)]
    if strange:
        listed = first([f"{key}={config[key]!r:.60}" for key in strange])
        wrote = config.get("peft_version") or "of a release that isn't named"
        raise TrntuneError(
            f"{directory}: this merge doesn't know {listed}, set by the peft that wrote the adapter ({wrote}): merge "
            "it with that release (merge_and_unload)"
        )
    if changes_base(config):
        raise TrntuneError(
            f"{directory}: init_lora_weights={config['init_lora_weights']} changed the base weights before training: "
            "save the adapter with path_initial_model_for_weight_conversion first"
        )
