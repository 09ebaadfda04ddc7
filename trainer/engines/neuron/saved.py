"""What one rank writes: its part of the weights in optimum-neuron's layout, and what says how they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.checkpoints import durable
from trainer.engines.neuron.adapter import config_document
from trainer.engines.neuron.layout import metadata_file, weights_file
from trainer.engines.neuron.part import Part
from trainer.engines.neuron.state import trained_weights
from trainer.engines.state import Tensors, copied


def weights(part: Part, model: nn.Module) -> dict[str, Tensors]:
    """This rank's file of weights, copied to host memory; nothing on replicas of another rank's."""
    if not part.place.holds_first_copy:
        return {}
    return {weights_file(part.config.method.name, part.place): copied(trained_weights(model))}


def documents(part: Part, model_dir: Path, metadata: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What says how this rank's weights lie, by file name. ``metadata`` is optimum-neuron's of this rank's part."""
    found: dict[str, Any] = {}
    if part.place.holds_first_copy and part.place.tensor == 0:
        found[metadata_file(part.config.method.name, part.place)] = metadata()
    if part.rank == 0:
        name, document = config_document(model_dir, part.config)
        found[name] = document
    return found


def write(directory: Path, tensors: dict[str, Tensors], documents: dict[str, Any]) -> None:
    """Write files by their names below ``directory``, onto the disk."""
    for name in (*tensors, *documents):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
    for name, content in tensors.items():
        durable.write_tensors(directory / name, content)
    for name, document in documents.items():
        durable.write_json(directory / name, document)


def saved_bytes(part: Part, model: nn.Module) -> tuple[int, int]:
    """Replicas share one file of the weights; under ZeRO-1 each writes its part of the optimizer's state."""
    trained, parallel = trained_weights(model).values(), part.config.parallelism
    first = part.place.holds_first_copy
    held = sum(tensor.nbytes for tensor in trained) if first else 0
    # Two fp32 moments, and under bf16 fp32 master weights.
    state_bytes = (12 if part.dtype == torch.bfloat16 else 8) * sum(tensor.numel() for tensor in trained)
    own = state_bytes // part.replicas if parallel.zero_1 else state_bytes * first
    best = 0 if part.config.training.early_stopping_patience is None else held
    return held, held + own + best
