"""Warm-up that begins above zero."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim.lr_scheduler import LambdaLR

from launcher.config.schema import Config
from launcher.plan.steps import warmup_steps
from trainer.engines.state import restore_scheduler


def begin_above_zero(scheduler: LambdaLR, config: Config, steps: int) -> None:
    """Let step k of a warm-up of w, from 1 on, have k/w of the peak learning rate, not (k-1)/w; the run has ``steps``.

    transformers' schedules begin at 0, so that the first step trains nothing. What follows the warm-up is unchanged.
    Nothing is done with ``training.warmup_from_zero``, and for the constant schedule, which has no warm-up.
    """
    warm = warmup_steps(config, steps)
    if config.training.warmup_from_zero or warm == 0:
        return
    scheduler.lr_lambdas = [_from_first(scale, warm) for scale in scheduler.lr_lambdas]
    restore_scheduler(scheduler, 0)


def _from_first(scale: Callable[[int], float], warmup_steps: int) -> Callable[[int], float]:
    """``scale``, a factor by the number of steps that have been made, but for those of the warm-up."""
    return lambda done: (done + 1) / warmup_steps if done < warmup_steps else scale(done)
