"""What a run will have on disk at its fullest, and whether there is room for it: one count for the plan, the launcher
and the training stage, which alone knows the sizes exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config.schema import Config
from launcher.io import free_bytes
from launcher.units import gigabytes

SLACK = 256 << 10
"""bytes for what is small beside all weights: records, metrics, logs, random generators"""


@dataclass(frozen=True)
class Sizes:
    """Bytes of each thing that a run writes."""

    weights: int
    """of what is trained, as it is saved at the end"""
    checkpoint: int
    """of one checkpoint: weights, optimizer state, early stopping's best weights"""
    merged: int = 0
    """of base and adapter as one model; 0 where none is made"""
    beside: int = 0
    """of tokenizer and configurations, which lie beside each of the weights; the plan doesn't know them"""


@dataclass(frozen=True)
class Room:
    """What one run needs, bytes."""

    checkpoints: int
    """those that are kept"""
    one_more: int
    """the checkpoint that is written before the oldest goes"""
    final: int
    """what is left beside the checkpoints"""
    words: str

    @property
    def kept(self) -> int:
        """Once it has ended."""
        return self.checkpoints + self.final + SLACK

    @property
    def most(self) -> int:
        """While it runs: the final weights come after the last checkpoint."""
        return self.checkpoints + max(self.one_more, self.final) + SLACK


def room_of(config: Config, sizes: Sizes, steps: int | None) -> Room:
    """What a run of so many optimizer steps needs; None: of more than it keeps checkpoints of."""
    saves = _saves(config.training.save_every, steps)
    kept = int(min(saves, config.training.keep_checkpoints))
    # What a split model's ranks wrote stays beside what stage consolidate makes of it.
    copies = 1 + ("consolidate" in config.stages and config.accelerator.engine == "neuron")
    words = [f"{kept + (saves > kept)} checkpoints of {gigabytes(sizes.checkpoint)}"] if kept else []
    what = "adapter" if config.method.name == "lora" else "model"
    words.append(f"{what} {gigabytes(copies * sizes.weights)}")
    if sizes.merged:
        words.append(f"merged model {gigabytes(sizes.merged)}")
    return Room(
        kept * sizes.checkpoint,
        sizes.checkpoint if saves > kept else 0,
        copies * (sizes.weights + sizes.beside) + (sizes.merged + sizes.beside if sizes.merged else 0),
        ", ".join(words),
    )


def _saves(every: int | None, steps: int | None) -> float:
    """Checkpoints of a run, the last step's included."""
    if every is None:
        return 0
    return math.inf if steps is None else math.ceil(steps / every)


def merges(config: Config) -> bool:
    """True for a run that leaves base and adapter as one model."""
    return config.method.name == "lora" and "merge" in config.stages


def little_room(where: Path, rooms: Sequence[Room], there: int = 0) -> str | None:
    """Why there is too little room below ``where`` for runs that come after each other, or None.

    ``there``: bytes that the run has on that disk already, and that count as its own.
    """
    free = free_bytes(where) + there
    needed = sum(room.kept for room in rooms) + max(room.most - room.kept for room in rooms)
    if needed <= free:
        return None
    what = rooms[0].words if len(rooms) == 1 else f"{len(rooms)} runs, the first: {rooms[0].words}"
    return (
        f"{where}: needs about {gigabytes(needed)} there ({what}), {gigabytes(free)} are free; make room, lower "
        "training.keep_checkpoints, or set another output_dir (plan.force=true starts it all the same)"
    )
