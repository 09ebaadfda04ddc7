"""What happens between transformers' steps: counts, seconds, wishes to stop, and whether to save."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback

from trainer import device
from trainer.checkpoints import rng
from trainer.checkpoints.state import Checkpoints
from trainer.engines.base import TrainingCallback
from trainer.engines.early_stopping import BestWeights
from trainer.engines.torch.parts import whole
from trainer.engines.torch.replica import Replica
from trainer.metrics.throughput import Counts
from trainer.signals import Stop


@dataclass
class StepAtHand:
    """What is known of the optimizer step that is being made, or has just been made."""

    local: Counts = field(default_factory=Counts)
    """of this replica, of the micro batches so far"""
    counts: Counts = field(default_factory=Counts)
    """of all replicas, once the gradients are there"""
    seconds: float = 0.0
    grad_norm: float = 0.0
    """before clipping"""
    stop: Stop = Stop.NO
    """the strongest wish of all ranks: training ends after this step"""
    evaluation_pending: bool = False
    """an evaluation was due after this step, and is left to whoever goes on"""
    rng_before: rng.RngState = field(default_factory=rng.capture)


class StepMeter(TrainerCallback):
    """Sums the counts over the replicas before the update, measures each step, and hears of wishes to stop."""

    def __init__(
        self,
        replica: Replica,
        step: StepAtHand,
        observer: TrainingCallback,
        checkpoints: Checkpoints,
        best: BestWeights,
        check_step: Callable[[], None],
    ) -> None:
        """``check_step`` is called when ``step`` has the loss and the norm of all replicas, before the update."""
        self.replica, self.step, self.observer, self.checkpoints = replica, step, observer, checkpoints
        self.best, self.check_step = best, check_step
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step.rng_before = rng.capture()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, group = self.step, self.replica.group
        # One collective carries the counts and the wishes to stop: all ranks leave after the same step.
        wish = self.observer.stop_requested()
        wishes = [float(wish == Stop.SAVE_AND_FINISH), float(wish == Stop.CHECKPOINT_AND_EXIT)]
        own = step.local if group.speaks else Counts()
        local = torch.tensor([*own.as_list(), *wishes], dtype=torch.float64, device=group.counts)
        *counts, finish, leave = group.all_reduce(local).tolist()
        step.counts, step.local = Counts.from_list(counts), Counts()
        step.stop = Stop.CHECKPOINT_AND_EXIT if leave else Stop.SAVE_AND_FINISH if finish else Stop.NO
        if not args.max_grad_norm:  # it has not been computed for clipping
            gradients = [p.grad for p in self.replica.module.parameters() if p.grad is not None]
            step.grad_norm = float(whole(torch.nn.utils.get_total_norm(gradients)))
        self.check_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = self.step
        self.replica.updated = True
        device.synchronize(self.replica.group.device.type)
        now = time.perf_counter()
        step.seconds, self.started = now - self.started, now
        last = state.global_step >= state.max_steps
        control.should_save |= self.checkpoints.due(state.global_step, last) or step.stop != Stop.NO
        control.should_training_stop |= step.stop != Stop.NO
        if step.stop == Stop.CHECKPOINT_AND_EXIT and control.should_evaluate:
            # There may be no time for it: it is made up for when the run goes on.
            control.should_evaluate, step.evaluation_pending = False, True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Evaluation lies between two steps: the next one is measured from here.
        self.started = time.perf_counter()
        if self.best.patience_ended:
            # The loop asks should_training_stop after evaluating, so training ends with this step.
            control.should_training_stop = True
            control.should_save |= self.checkpoints.due(state.global_step, last=True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()
