"""transformers.Trainer on packed rows: its loop, optimizer, schedule, DDP; our loss, counts, order, checkpoints."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from trainer.checkpoints import rng
from trainer.data.collate import counts_of
from trainer.data.order import MicroBatches, rows_of_step
from trainer.engines.base import (
    Checkpoints,
    EngineState,
    NonFiniteLossError,
    RestoredState,
    Rows,
    StepReport,
    TrainingCallback,
)
from trainer.engines.torch import state as state_files
from trainer.engines.warmup import begin_above_zero
from trainer.metrics.throughput import Counts, Stopwatch
from trainer.models.causal_lm import MODEL_INPUTS
from trainer.signals import BestEvaluation, Stop

if TYPE_CHECKING:
    from trainer.engines.torch.engine import TorchEngine


class RowLoader(DataLoader[Any]):
    """This replica's micro batches. Its generator is its own: beginning a pass draws nothing from torch's."""

    def __init__(self, rows: Rows, sampler: MicroBatches, **settings: Any) -> None:
        super().__init__(rows, batch_sampler=sampler, generator=torch.Generator(), **settings)  # type: ignore[arg-type]
        self.micro_batches = sampler

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each pass."""
        self.micro_batches.epoch = epoch


class BestWeights(TrainerCallback):
    """Early stopping: keeps the trainable weights of the lowest evaluation, ends training without progress."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine, training = engine, engine.config.training
        self.evaluation = BestEvaluation(training.early_stopping_patience, training.early_stopping_min_delta)
        self.weights: dict[str, torch.Tensor] = {}
        """copies in host memory, on rank 0; a new best is a new dictionary"""

    @property
    def patience_ended(self) -> bool:
        return self.evaluation.ended

    @property
    def step(self) -> int | None:
        return self.evaluation.step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        metrics: dict[str, float] = kwargs["metrics"]
        if self.evaluation.look(state.global_step, metrics["eval_loss"]):
            self.weights = state_files.copied(self._trainable()) if self.engine.rank == 0 else {}
        # The loop asks should_training_stop after evaluating, so training ends with this step.
        control.should_training_stop |= self.patience_ended

    def restore_best(self) -> None:
        """Put the best weights back, on every rank, when an evaluation has kept some."""
        if self.step is None:
            return
        trainable = self._trainable()
        if self.engine.rank == 0:
            state_files.put(trainable, self.weights)
        if dist.is_initialized():
            for tensor in trainable.values():
                dist.broadcast(tensor, src=0)

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint; None without an evaluation."""
        return self.evaluation.state()

    def restore_state(self, restored: RestoredState) -> None:
        """Go on as when the checkpoint was written."""
        kept = restored.document(state_files.ENGINE)["best"]
        if self.evaluation.patience is None or kept is None:
            return
        self.evaluation.restore(kept)
        if self.engine.rank == 0:
            self.weights = restored.tensors(state_files.BEST)

    def _trainable(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.engine.module.named_parameters() if p.requires_grad}


class PackedTrainer(Trainer):
    """One training of one rank."""

    checkpoints: Checkpoints
    stopwatch: Stopwatch

    def __init__(
        self,
        engine: TorchEngine,
        arguments: TrainingArguments,
        rows: Rows,
        eval_rows: Rows,
        observer: TrainingCallback,
        best: BestWeights,
    ) -> None:
        self.engine, self.rows, self.eval_rows, self.observer, self.best = engine, rows, eval_rows, observer, best
        super().__init__(
            model=engine.module,
            args=arguments,
            train_dataset=rows,
            eval_dataset=eval_rows,
            data_collator=engine.collator,
            callbacks=[best, StepMeter(self)],
        )
        # Ours is normalized by the labels of the whole step, over all micro batches and replicas.
        self.model_accepts_loss_kwargs = True
        self.counts = Counts()
        self.step_counts = Counts()
        self.step_seconds = 0.0
        self.grad_norm = 0.0
        self.stop = Stop.NO
        self.evaluation_pending = False
        self.restored: RestoredState | None = None
        self.rng_before_step = rng.capture()
        self._clip = self.accelerator.clip_grad_norm_
        self.accelerator.clip_grad_norm_ = self._clip_and_remember

    def go(self, resumed: RestoredState | None, total_steps: int) -> None:
        """Train to the end, from the beginning or from a checkpoint."""
        if resumed is None:
            self.train()
            return
        self.restored, self.engine.updated = resumed, True
        self.state = TrainerState(global_step=resumed.step, train_batch_size=self.args.train_batch_size)
        if resumed.document(state_files.ENGINE)["evaluation_pending"]:
            self.evaluate()
        if resumed.step >= total_steps or self.best.patience_ended:
            return
        # The Trainer goes on from a directory with its state; all else is taken from the checkpoint by the methods
        # below.
        self.state.compute_steps(self.args, total_steps)
        with tempfile.TemporaryDirectory() as directory:
            self.state.save_to_json(str(Path(directory) / TRAINER_STATE_NAME))
            self.train(resume_from_checkpoint=directory)

    def rows_of(self, step: int) -> list[int]:
        """The training rows of a step, on all replicas."""
        config = self.engine.config
        return rows_of_step(step, len(self.rows), config.training.global_batch_size, config.seed)

    def get_train_dataloader(self) -> RowLoader:
        engine, size = self.engine, self.args.per_device_train_batch_size
        sampler = MicroBatches(len(self.rows), engine.config.seed, size, engine.rank, engine.replicas)
        pin = self.args.dataloader_pin_memory
        return RowLoader(self.rows, sampler, collate_fn=engine.collator, pin_memory=pin)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        """Labels that count in this optimizer step, all micro batches and replicas; at least 1 (a step of padding)."""
        if not batch_samples:  # the end of a pass that was gone into in the middle, the same on every rank
            return None
        trained = torch.stack([batch["num_trained"] for batch in batch_samples]).sum().to(device)
        return self.engine.all_reduce(trained).clamp(min=1)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss: torch.Tensor = model(**{name: inputs[name] for name in MODEL_INPUTS})
        counts = counts_of(inputs, self.engine.extents)
        counts.loss_sum = float(loss.detach())
        self.counts += counts
        # DDP averages gradients over the replicas; the sum is wanted.
        return loss * self.engine.replicas / num_items_in_batch

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Exact held-out loss over all rows, instead of Trainer's mean of batch means."""
        with self.stopwatch.part("eval"):
            metrics = {"eval_loss": self.engine.evaluate(self.eval_rows)}
        self.observer.on_evaluation(self.state.global_step, metrics["eval_loss"])
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called after each step with the learning rate that the step used."""
        if "learning_rate" not in logs:
            return  # the closing summary: its speed counts rows, not samples
        self.observer.on_step(
            StepReport(
                step=self.state.global_step,
                epoch=float(self.state.epoch or 0.0),
                counts=self.step_counts,
                seconds=self.step_seconds,
                learning_rate=logs["learning_rate"],
                grad_norm=self.grad_norm,
                rows=self.rows_of(self.state.global_step),
            )
        )
        self.checkpoints.poll()

    def refuse_not_finite(self) -> None:
        """Raise NonFiniteLossError before an update that would break the weights, once the last good state is saved."""
        loss, norm = self.step_counts.loss_sum, self.grad_norm
        if math.isfinite(loss) and math.isfinite(norm):
            return
        step = self.state.global_step + 1
        self.checkpoints.wait()
        if self.state.global_step > self.checkpoints.saved_step:
            self._save_state(self.rng_before_step)
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
        lines = self.observer.lines(self.rows_of(step))
        shown = ", ".join(map(str, lines[:8])) + (", ..." if len(lines) > 8 else "")
        raise NonFiniteLossError(
            f"step {step}: {what}, so the weights were not updated; lower training.learning_rate or look at the rows "
            f"of this step (lines {shown} of the data set)"
        )

    def _clip_and_remember(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        norm: torch.Tensor = self._clip(*args, **kwargs)
        self.grad_norm = float(norm)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Called where control.should_save asks for it: after the step, its log and its evaluation."""
        if self.state.global_step > self.checkpoints.saved_step:
            self._save_state(rng.capture())

    def _save_state(self, generators: rng.RngState) -> None:
        """Copy this rank's state to host memory and hand it over; training goes on as soon as that is done."""
        start = time.perf_counter()
        with self.stopwatch.part("save"):
            captured = self._captured(generators)
            self.checkpoints.stalled(time.perf_counter() - start)
            self.checkpoints.save(captured)

    def _captured(self, generators: rng.RngState) -> EngineState:
        engine = self.engine
        tensors = {state_files.rng_file(engine.rank): generators}
        documents: dict[str, Any] = {}
        if engine.rank == 0:  # what all replicas have alike
            tensors[state_files.weights_file(engine.model)] = state_files.copied(state_files.live_weights(engine.model))
            moments = state_files.optimizer_tensors(self.inner_optimizer, engine.module)
            tensors[state_files.OPTIMIZER] = state_files.copied(moments)
            if self.best.weights:
                tensors[state_files.BEST] = self.best.weights
            name, document = state_files.config_document(engine.model)
            documents[name] = document
            documents[state_files.ENGINE] = {
                "engine": "torch",
                "best": self.best.state(),
                "evaluation_pending": self.evaluation_pending,
            }
        return EngineState(self.state.global_step, float(self.state.epoch or 0.0), tensors, documents)

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        """Without accelerate's wrapper."""
        inner: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The Trainer's, with our warm-up."""
        created = self.lr_scheduler is None
        scheduler = cast(LambdaLR, super().create_scheduler(num_training_steps, cast(Any, optimizer)))
        if created:
            begin_above_zero(scheduler, self.engine.config, num_training_steps)
        return scheduler

    # What the Trainer calls while it goes on from a checkpoint.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights are in place already."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.restored is not None:
            stored = self.restored.tensors(state_files.OPTIMIZER)
            state_files.restore_optimizer(self.inner_optimizer, self.engine.module, stored)
            scheduler: Any = self.lr_scheduler
            state_files.restore_scheduler(scheduler, self.restored.step)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.restored is not None:
            state_files.restore_rng(self.restored, self.engine.rank)


class StepMeter(TrainerCallback):
    """Sums the counts over the replicas before the update, measures each step, and hears of wishes to stop."""

    def __init__(self, trainer: PackedTrainer) -> None:
        self.trainer = trainer
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.rng_before_step = rng.capture()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, engine = self.trainer, self.trainer.engine
        # One collective carries the counts and the wishes to stop: all ranks leave after the same step.
        wish = trainer.observer.stop_requested()
        local = [
            *trainer.counts.as_list(),
            float(wish == Stop.SAVE_AND_FINISH),
            float(wish == Stop.CHECKPOINT_AND_EXIT),
        ]
        reduced = engine.all_reduce(torch.tensor(local, dtype=torch.float64, device=engine.device)).tolist()
        *counts, finish, leave = reduced
        trainer.step_counts, trainer.counts = Counts.from_list(counts), Counts()
        trainer.stop = Stop.CHECKPOINT_AND_EXIT if leave else Stop.SAVE_AND_FINISH if finish else Stop.NO
        if not args.max_grad_norm:  # it has not been computed for clipping
            gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
            trainer.grad_norm = float(torch.nn.utils.get_total_norm(gradients))
        trainer.refuse_not_finite()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.engine.updated = True
        if trainer.engine.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        trainer.step_seconds, self.started = now - self.started, now
        last = state.global_step >= state.max_steps
        control.should_save |= trainer.checkpoints.due(state.global_step, last) or trainer.stop != Stop.NO
        control.should_training_stop |= trainer.stop != Stop.NO
        if trainer.stop == Stop.CHECKPOINT_AND_EXIT and control.should_evaluate:
            # There may be no time for it: it is made up for when the run goes on.
            control.should_evaluate, trainer.evaluation_pending = False, True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Evaluation lies between two steps: the next one is measured from here.
        self.started = time.perf_counter()
        if self.trainer.best.patience_ended:
            control.should_save |= self.trainer.checkpoints.due(state.global_step, last=True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()
