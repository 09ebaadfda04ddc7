"""Models in pickles, as transformers saved them before 5, which saves safetensors alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def pickle_shards(directory: Path) -> None:
    """Have the shards of a model directory, and their index, be pickles."""
    for file in sorted(directory.glob("model-*.safetensors")):
        torch.save(load_file(file), directory / _pickled(file.name))
        file.unlink()
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {name: _pickled(file) for name, file in content["weight_map"].items()}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    index.unlink()


def _pickled(name: str) -> str:
    return name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
