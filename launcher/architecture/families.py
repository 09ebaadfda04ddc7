"""Whether a model of a family that conf/ has no facts of can be trained, before anything is created or submitted."""

from __future__ import annotations

import json
from dataclasses import asdict

from launcher.config.schema import Config, is_sharded, on_torch_neuron
from launcher.errors import UsageError
from launcher.jobs.helper_process import ask
from launcher.model_dir.config_facts import described_by, told_of


def check_family(config: Config) -> None:
    """Raise UsageError where training would be of another model than transformers computes (trainer.families), or the
    adapter of another kind than its settings say (trainer.models.adapt).

    It is found out by a process of its own, from the model's config.json. Llama, Granite and Qwen3 need none; a model
    on the Hub without model.config_json, or one with code of its own, is looked at when it trains.
    """
    model = config.model
    if model.architecture is not None or model.trust_remote_code:
        return
    if config.accelerator.engine != "torch" or "train" not in config.stages:
        return
    directory = described_by(model)
    if directory is None:
        return
    request = {
        "model_dir": str(directory),
        "length": config.training.max_length,
        "packing": config.dataset.packing,
        "sharded": is_sharded(config),
        "fixed_shapes": on_torch_neuron(config),
        "lora": asdict(config.lora) if config.method.name == "lora" else None,
    }
    found = ask("trainer.families.choose", json.dumps(request), "whether samples can be packed is seen when it trains")
    if found is not None and found.get("error"):
        raise UsageError(told_of(model, found["error"]))
