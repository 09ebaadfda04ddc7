"""Bytes that a run will have on disk, by the configuration alone; the training stage counts the very tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.architecture.adapters import comes_apart
from launcher.architecture.parameters import Parameters
from launcher.architecture.tensors import modules
from launcher.config.schema import Config
from launcher.errors import UsageError
from launcher.jobs.executor import is_submitted
from launcher.model_dir.files import weight_files
from launcher.model_dir.generation_config import repair_of
from launcher.plan.room import Room, Sizes, little_room, merges, room_of

# Of the models that are converted or built here; others are mostly stored in 16 bits.
_STORED_BYTES = {"wheel": 4, "builtin": 4}


def estimated_room(config: Config, parameters: Parameters, steps: int | None) -> Room | None:
    """What the run will need; None for one that doesn't train."""
    return room_of(config, sizes(config, parameters), steps) if "train" in config.stages else None


def sizes(config: Config, parameters: Parameters) -> Sizes:
    """As the engines save: fp32 weights and two moments (torch); on Neuron under bf16 bf16 weights, and fp32 master
    weights beside the moments, on every tensor-parallel rank what it trains."""
    neuron, bf16 = config.accelerator.engine == "neuron", config.training.precision == "bf16"
    trained = sum(parameters.trainable_local) * config.parallelism.tensor_parallel
    weights = (2 if neuron and bf16 else 4) * trained
    best = weights if config.training.early_stopping_patience is not None else 0
    state = (12 if neuron and bf16 else 8) * trained
    base = Path(config.model.path).expanduser() if config.model.path else None
    return Sizes(weights, weights + state + best, merged_bytes(config, base, parameters.total))


def merged_bytes(config: Config, base: Path | None, parameters: int) -> int:
    """Of the merged model, 0 where none is made: the base's own bytes where it is at hand and its dtype is kept, and a
    head that is no longer tied. ``parameters``: of the base."""
    dtype = config.merge.dtype
    if not merges(config):
        return 0
    more = _untied(config)
    if dtype is not None:
        return (parameters + more) * (4 if dtype == "float32" else 2)
    stored = sum(file.stat().st_size for file in weight_files(base)) if base is not None else 0
    return (stored or parameters * _STORED_BYTES.get(config.model.source, 2)) * (parameters + more) // parameters


def _untied(config: Config) -> int:
    """Parameters of the head where it was the embedding and is stored beside it when merged; 0 for a family whose
    names the plan doesn't know."""
    facts = config.model.architecture
    if facts is None or not comes_apart(config.lora, modules(facts)):
        return 0
    return facts.vocab_size * facts.hidden_size


def fault_here(config: Config, room: Room | None) -> str | None:
    """Why this machine's disk is too small for a run on it, or None. Of a run elsewhere the disk isn't known."""
    if room is None or config.accelerator.device != "cpu" or is_submitted(config.cluster):
        return None
    return little_room(Path(config.output_dir).expanduser().absolute(), [room])


def check_room_for(where: Path, rooms: Sequence[Room]) -> None:
    """Raise UsageError where the runs of a command line, which all stay on disk, don't fit on it."""
    fault = little_room(where, rooms) if rooms else None
    if fault:
        raise UsageError(fault)


def generation_notes(config: Config, tokenizer: Path | None) -> list[str]:
    """What a saved model will say of generation other than its base. ``tokenizer``: a file of the base's, where it is
    on this machine."""
    if tokenizer is None or (config.method.name == "lora" and not merges(config)):
        return []  # an adapter says nothing of it
    return list(repair_of(tokenizer.parent).notes)
