"""What the engines' states have in common: tensors to host memory and back, the schedule, the random generators."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftConfig

from trainer.checkpoints import rng
from trainer.checkpoints.state import Checkpoints, EngineState, RestoredState
from trainer.metrics.throughput import Stopwatch

Tensors = dict[str, torch.Tensor]

ENGINE = "engine.json"
"""the document of a checkpoint with the engine's name, "best" (trainer.engines.early_stopping) and
"evaluation_pending": an evaluation was due after the step, and is made up for"""


def rng_file(rank: int) -> str:
    """The file with the random generators of a rank."""
    return f"rng-{rank:05d}.safetensors"


def copied(tensors: Tensors) -> Tensors:
    """Copies in host memory."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def hand_over(capture: Callable[[], EngineState], checkpoints: Checkpoints, stopwatch: Stopwatch) -> None:
    """Copy this rank's state to host memory and hand it over; training goes on as soon as that is done."""
    start = time.perf_counter()
    with stopwatch.part("save"):
        captured = capture()
        checkpoints.stalled(time.perf_counter() - start)
        checkpoints.save(captured)


def put(tensors: Tensors, stored: Tensors) -> None:
    """Copy ``stored`` into ``tensors`` in place. Raises KeyError or RuntimeError where names or shapes differ."""
    if tensors.keys() != stored.keys():
        raise KeyError(f"other tensors: {sorted(tensors.keys() ^ stored.keys())[:3]}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(stored[name])


def restore_scheduler(scheduler: torch.optim.lr_scheduler.LambdaLR, step: int) -> None:
    """Put the schedule where it stands after ``step`` optimizer steps: it is a function of the step alone."""
    scheduler.last_epoch = step
    scheduler._step_count = step + 1
    rates = [base * scale(step) for base, scale in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def restore_rng(restored: RestoredState, rank: int) -> bool:
    """Put this rank's generators back. False when the checkpoint was written by fewer ranks: the rank then keeps its
    own."""
    if not restored.has(rng_file(rank)):
        return False
    rng.restore(restored.tensors(rng_file(rank)))
    return True


def adapter_document(config: PeftConfig) -> dict[str, Any]:
    """adapter_config.json of a finished adapter."""
    settings = config.to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    return {**plain, "inference_mode": True}
