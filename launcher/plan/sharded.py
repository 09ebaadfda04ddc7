"""What a process holds of a model that lies over data_parallel processes (parallelism.sharding=fsdp): its part of
parameters, gradients and moments, and the units that are whole while they compute (trainer.engines.torch.sharding)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.architecture.adapters import saved_modules
from launcher.architecture.family_table import EMBEDDING, HEAD
from launcher.architecture.parameters import Parameters
from launcher.architecture.tensors import base_tensors, modules
from launcher.config.schema import ArchitectureConfig, Config, offloads, world_size

# Measured on runs of two sizes and both methods (docs/planning.md): of the layers that were whole between activations
# that are kept, what the heap has not found a use for. A device's allocator was not measured.
HOST_HOLES = 0.8


@dataclass(frozen=True)
class Unit:
    """Parameters that are put together at once."""

    held: float
    trained: float


def units(config: Config, facts: ArchitectureConfig, held: float, trained: float) -> tuple[Unit, Unit]:
    """A decoder layer, and all that is in none: embedding, last norm, output head, and copies of them that are
    trained; under tensor parallelism a rank's part of these. ``held`` and ``trained``: parameters that are shared,
    adapters among them."""
    matrix = facts.vocab_size * facts.hidden_size / config.parallelism.tensor_parallel
    ends = matrix * (1 if facts.tied_embeddings else 2) + facts.hidden_size
    if config.method.name == "full":
        last = Unit(ends, ends)
    else:
        saved = saved_modules(config.lora, modules(facts))
        copies = matrix * sum(name in (EMBEDDING, HEAD) for name in saved)
        last = Unit(ends + copies, copies)
    return Unit((held - last.held) / facts.layers, max(0.0, trained - last.trained) / facts.layers), last


def state(config: Config, facts: ArchitectureConfig, held: int, trained: int) -> tuple[float, float, float]:
    """Bytes of weights, gradients and moments while a layer computes and the next one is being gathered.

    What lies in host memory (cpu_offload) is not among them, but the parts of both layers on their way are. Trained
    layers are gathered in bf16 under bf16 in full training, and their gradients summed in fp32 beside the ones that
    autograd has made; autocast keeps a bf16 copy of an adapter's matrices."""
    ranks, bf16 = config.parallelism.data_parallel, config.training.precision == "bf16"
    full = config.method.name == "full"
    layer, last = units(config, facts, held, trained)
    frozen, gathered = (2 if bf16 else 4), (2 if bf16 and full else 4)
    whole_layers = 2 * ((layer.held - layer.trained) * frozen + layer.trained * gathered)
    whole_ends = (last.held - last.trained) * frozen + last.trained * 4
    copies = 2 * trained if bf16 and not full else 0
    if config.accelerator.device == "cpu":
        whole_layers += HOST_HOLES * whole_layers / 2 * facts.layers
    together = whole_layers + whole_ends + copies
    gradients = 4 * last.trained + (gathered + 4) * layer.trained
    if offloads(config):
        sent = 2 * ((layer.held - layer.trained) * frozen + layer.trained * 4) / ranks
        return sent + together, gradients + 4 * max(layer.trained, last.trained) / ranks, 0.0
    parts = ((held - trained) * frozen + trained * 4) / ranks
    return parts + together, gradients + 4 * trained / ranks, 8 * trained / ranks


def in_host_memory(config: Config, facts: ArchitectureConfig, parameters: Parameters) -> float:
    """Bytes of a process's parts of parameters, gradients and moments where they lie in host memory (cpu_offload).

    Parameters and full training's gradients are in pinned memory, of which torch takes a power of two for each tensor
    [ATen/core/CachingHostAllocator.h]; an adapter's own are small."""
    ranks, trained = config.parallelism.data_parallel, parameters.trainable
    full, width = config.method.name == "full", 2 if config.training.precision == "bf16" else 4
    weights = sum(_pinned(tensor.shape, ranks, 4 if full else width) for tensor in base_tensors(facts))
    if full:
        return 2 * weights + 8 * trained / ranks
    return weights + (4 + 4 + 8) * trained / ranks


def _pinned(shape: tuple[int, ...], ranks: int, width: int) -> int:
    """Bytes of pinned memory for a part of a tensor: its rows are padded to as many on each rank."""
    taken = -(-shape[0] // ranks) * math.prod(shape[1:]) * width
    return 1 << (taken - 1).bit_length()


def whole(config: Config, parameters: Parameters) -> float:
    """Bytes of host memory of the process that holds most while there is a whole model in it: each reads one before it
    keeps its part, and the first one puts what was trained together to save it."""
    held, trained = parameters.total + parameters.adapter, parameters.trainable
    ranks, frozen = world_size(config), 2 if config.training.precision == "bf16" else 4
    read = (held - trained) * frozen + trained * 4
    saved = 4 * trained + ((held - trained) * frozen + 12 * trained) / ranks
    return max(read, saved)
