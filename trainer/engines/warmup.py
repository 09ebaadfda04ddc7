"""Warm-up that begins above zero."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim.lr_scheduler import LambdaLR

from launcher.schema import Config
from trainer.engines.torch_state import restore_scheduler


def begin_above_zero(scheduler: LambdaLR, config: Config) -> None:
    """Let step k of the warm-up, from 1 on, have k/warmup_steps of the peak learning rate, not (k-1)/warmup_steps.

    transformers' schedules begin at 0, so that the first step trains nothing. What follows the warm-up is unchanged.
    Nothing is done with ``training.warmup_from_zero``, and for the constant schedule, which has no warm-up.
    """
    training = config.training
    if training.warmup_from_zero or training.warmup_steps == 0 or training.scheduler == "constant":
        return
    scheduler.lr_lambdas = [_from_first(scale, training.warmup_steps) for scale in scheduler.lr_lambdas]
    restore_scheduler(scheduler, 0)


def _from_first(scale: Callable[[int], float], warmup_steps: int) -> Callable[[int], float]:
    """``scale``, a factor by the number of steps that have been made, but for those of the warm-up."""
    return lambda done: (done + 1) / warmup_steps if done < warmup_steps else scale(done)
