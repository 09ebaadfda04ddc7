"""An adapter directory as peft writes it, checked as far as that goes without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import TrntuneError
from postprocess.safetensors_stream import HeaderEntry, read_header
from trainer.models.fingerprint import BASE_FILE

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# Features of LoraConfig that change the merge and that are not implemented here; empty values mean that they are off.
_UNSUPPORTED = {
    "use_qalora": "QALoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on bare parameters",
    "megatron_config": "Megatron's layers",
    "alora_invocation_tokens": "activated LoRA, which cannot be merged",
}
# These initializations subtract something from the base weights, which a plain base then lacks.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class Adapter:
    """A peft LoRA adapter: its directory, adapter_config.json, and the header of its weights."""

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, HeaderEntry]

    @property
    def weights(self) -> Path:
        return self.directory / WEIGHTS

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


def read_adapter(directory: Path) -> Adapter:
    """Read an adapter directory. Raises TrntuneError for anything that is not a LoRA adapter which can be merged."""
    file = directory / CONFIG
    if not file.is_file():
        raise TrntuneError(f"{directory} is not an adapter directory: it has no {CONFIG}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError
    except (OSError, ValueError):
        raise TrntuneError(f"{file} is damaged: it is not a JSON object; copy the adapter again") from None
    _check_config(directory, config)
    if not (directory / WEIGHTS).is_file():
        pickled = (directory / "adapter_model.bin").exists()
        instead = "only adapter_model.bin, a pickle that runs code when read; save it with safe_serialization=True"
        raise TrntuneError(f"{directory} has no {WEIGHTS}" + (f", {instead}" if pickled else ""))
    return Adapter(directory, config, read_header(directory / WEIGHTS))


def _check_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Refuse what this merge would get wrong."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise TrntuneError(f"{directory}: peft_type {kind} can't be merged here, only LORA (with DoRA and rsLoRA)")
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise TrntuneError(f"{directory}: an adapter for task {task} can't be merged here, only CAUSAL_LM")
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            raise TrntuneError(f"{directory}: {key} is set: {what} is not supported by this merge")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_BASE):
        raise TrntuneError(
            f"{directory}: init_lora_weights={start} changed the base weights before training: save the adapter with "
            "path_initial_model_for_weight_conversion first"
        )
