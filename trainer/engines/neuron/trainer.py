"""optimum-neuron's NeuronTrainer on our rows: its loop, optimizer, ZeRO-1; our loss, order, evaluation, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
import torch_xla
from optimum.neuron import NeuronTrainer, NeuronTrainingArguments
from transformers import TrainerCallback

from trainer.checkpoints import rng
from trainer.checkpoints.state import Checkpoints, EngineState, RestoredState
from trainer.compilation.trial import tracing
from trainer.data.collate import Collator, counts_of
from trainer.data.order import rows_of_step
from trainer.engines.base import Rows, TrainingCallback, non_finite
from trainer.engines.early_stopping import BestWeights
from trainer.engines.neuron import generators, pipeline
from trainer.engines.neuron import patches as neuron_patches
from trainer.engines.neuron import state as neuron_state
from trainer.engines.neuron.batch import host_batch, trained_labels
from trainer.engines.neuron.data_loader import Remaining
from trainer.engines.neuron.layout import best_file
from trainer.engines.neuron.loss import held_out_loss, loss_sum
from trainer.engines.neuron.part import Part
from trainer.engines.neuron.saved import weights
from trainer.engines.state import ENGINE, Tensors, copied, hand_over, restore_scheduler, rng_file
from trainer.engines.warmup import begin_above_zero
from trainer.metrics.throughput import Counts, StepReport, Stopwatch
from trainer.signals import Stop


class DocumentTrainer(NeuronTrainer):
    """One training of one rank."""

    model: Any
    rows: Rows
    eval_rows: Rows
    observer: TrainingCallback
    checkpoints: Checkpoints
    stopwatch: Stopwatch
    best: BestWeights

    def __init__(
        self,
        part: Part,
        collator: Collator,
        arguments: NeuronTrainingArguments,
        model: Any,
        documents: Callable[[], dict[str, Any]],
    ) -> None:
        """``documents`` gives what says how this rank's weights lie, by file name."""
        self.part, self.collator, self.documents = part, collator, documents
        super().__init__(model, arguments, data_collator=collator, callbacks=[StepMeter(self)])
        self.metrics_collector.enabled = False  # with none of its metrics wanted it still times parts
        self.model = self.accelerator.prepare_model(self.model)
        self.counts, self.step_counts = Counts(), Counts()
        self.loss_sums: list[torch.Tensor] = []
        self.scale = torch.ones(())
        self.stop = Stop.NO
        self.evaluation_pending = False
        self.restored: RestoredState | None = None
        self.state_before_step = generators.capture()

    # What the run is.

    def rows_of(self, step: int) -> list[int]:
        """The training rows of a step, on all replicas."""
        config = self.part.config
        return rows_of_step(step, len(self.rows), config.training.global_batch_size, config.seed)

    def get_train_dataloader(self) -> Remaining:
        done = self.restored.step if self.restored else 0
        return Remaining(self.part, self.collator, self.rows, self.rows_of, done, self.args.max_steps)

    def set_initial_training_values(self, args: Any, dataloader: Any, total_train_batch_size: int) -> tuple[Any, ...]:
        """One pass over what remains; the schedule is that of the whole run."""
        steps = len(dataloader) // args.gradient_accumulation_steps
        return 1, steps, len(self.rows), steps * total_train_batch_size, False, len(dataloader), args.max_steps

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """The NeuronTrainer's, also as the stages of a pipeline name an adapter's parameters: as the base does."""
        names = super().get_decay_parameter_names(model)
        return [*names, *(name.removeprefix("base_model.model.") for name in names)]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """The NeuronTrainer's, with our warm-up."""
        created = self.lr_scheduler is None
        super().create_scheduler(num_training_steps, optimizer)
        if created:
            begin_above_zero(self.lr_scheduler, self.part.config, self.args.max_steps)

    def setup_training(self, *args: Any, **kwargs: Any) -> None:
        """Then put everything where the checkpoint found it. The weights are in place already."""
        self.accelerator._models.append(self.model)  # prepared before the first evaluation; _train has forgotten it
        super().setup_training(*args, **kwargs)
        neuron_patches.mark_copies(neuron_state.parts(self.inner_optimizer, self.model), self.model)
        if self.restored is None:
            return
        self.state.global_step = self.restored.step
        inner = self.inner_optimizer
        neuron_state.restore_optimizer(inner, self.model, self.restored.tensors(self.part.optimizer_file))
        restore_scheduler(self.lr_scheduler, self.restored.step)
        generators.restore(self.restored.tensors(rng_file(self.part.rank)))
        torch_xla.sync()

    @property
    def inner_optimizer(self) -> Any:
        """Without accelerate's wrapper."""
        return self.optimizer.optimizer

    # One step.

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any = None, prefetch_size: int | None = None
    ) -> tuple[list[dict[str, torch.Tensor]], None]:
        """The micro batches of one step on the device, and what the loss of the step is divided by.

        That is labels of all replicas, known from the rows themselves: optimum-neuron counts its own replica's alone,
        so that a replica with few labels would weigh as much as one with many. It goes to the device as a tensor: a
        number in the graph would be another graph each step.
        """
        config = self.part.config
        batches = list(islice(epoch_iterator, self.part.micro_batches))
        self.counts = sum((counts_of(batch) for batch in batches), Counts())
        rows = self.rows_of(self.state.global_step + 1)
        trained = trained_labels([self.rows[row] for row in rows])
        # Gradients are averaged over the replicas; the sum is wanted.
        self.scale = torch.tensor(self.part.replicas / max(trained, 1), dtype=torch.float32).to(device)
        self.state_before_step = generators.capture()
        hosts = [host_batch(batch, config.dataset.packing) for batch in batches]
        if self.part.staged:
            return [pipeline.inputs(hosts)], None
        return [{name: tensor.to(device) for name, tensor in host.items()} for host in hosts], None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        if self.part.staged:
            loss = pipeline.run(self.part, self.model, inputs, self.args.device, training=True)
        else:
            loss = loss_sum(self.part, self.model, inputs)
        self.loss_sums.append(loss.detach())
        return loss * self.scale

    def check_finite(self, what: str, updated: bool) -> None:
        """Raise NonFiniteLossError. The last good state is saved first, where it is still there. In a trial run no
        number means anything: nothing is executed."""
        if tracing():
            return
        step = self.state.global_step + (0 if updated else 1)
        self.checkpoints.wait()
        if not updated and self.state.global_step > self.checkpoints.saved_step:
            self.save_state(self.state_before_step)
        raise non_finite(step, what, self.observer.lines(self.rows_of(step)), updated)

    # Between two steps.

    def between_steps(self, step: int) -> bool:
        """Evaluate and save where it is due. True when training must end."""
        every = self.part.config.training.eval_every
        if every is not None and step % every == 0:
            # There may be no time for it: it is made up for when the run goes on.
            self.evaluation_pending = self.stop == Stop.CHECKPOINT_AND_EXIT
            if not self.evaluation_pending:
                self.evaluate_now(step)
        last = step >= self.args.max_steps or self.best.patience_ended
        if self.checkpoints.due(step, last) or (self.stop != Stop.NO and step > self.checkpoints.saved_step):
            self.save_state(generators.capture())
        return self.stop != Stop.NO or self.best.patience_ended

    def held_out_loss(self, rows: Rows) -> float:
        """See trainer.engines.base.Engine.evaluate."""
        return held_out_loss(self.part, self.model, self.collator, self.args.device, rows)

    def evaluate_now(self, step: int) -> None:
        """Evaluate the weights of ``step``, which is told, and kept by early stopping if it is the best."""
        with self.stopwatch.part("eval"):
            loss = self.held_out_loss(self.eval_rows)
        self.observer.on_evaluation(step, loss)
        self.best.look(step, loss)

    def save_state(self, random: rng.RngState) -> None:
        hand_over(lambda: self._captured(random), self.checkpoints, self.stopwatch)

    def _captured(self, random: rng.RngState) -> EngineState:
        part = self.part
        tensors: dict[str, Tensors] = {rng_file(part.rank): random, **weights(part, self.model)}
        documents = self.documents()
        if part.place.holds_first_copy and self.best.weights:
            tensors[best_file(part.place)] = self.best.weights
        if part.place.holds_first_copy or part.config.parallelism.zero_1:
            moments = neuron_state.optimizer_tensors(self.inner_optimizer, self.model)
            tensors[part.optimizer_file] = copied(moments)
        if part.rank == 0:
            documents[ENGINE] = {
                "engine": "neuron",
                "best": self.best.state(),
                "evaluation_pending": self.evaluation_pending,
            }
        return EngineState(self.state.global_step, float(self.state.epoch or 0.0), tensors, documents)


class StepMeter(TrainerCallback):
    """Sums the counts over the replicas, measures each step, and does between two steps what is due."""

    def __init__(self, trainer: DocumentTrainer) -> None:
        self.trainer = trainer
        self.started = 0.0
        self.learning_rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.counts.loss_sum = sum(float(loss) for loss in trainer.loss_sums)
        trainer.loss_sums = []
        # One exchange carries the counts and the wishes to stop: all ranks leave after the same step.
        wish = trainer.observer.stop_requested()
        trainer.step_counts, trainer.stop = trainer.part.agree(trainer.counts, wish)
        self.learning_rate = trainer._get_last_learning_rate()
        neuron_patches.set_learning_rates(trainer.inner_optimizer, trainer.lr_scheduler.get_last_lr())
        if not math.isfinite(trainer.step_counts.loss_sum):
            trainer.check_finite(f"the loss is {trainer.step_counts.loss_sum}", updated=False)
        if trainer.part.staged:  # the stages have gone backward by themselves
            neuron_patches.scale_gradients(trainer.inner_optimizer, trainer.scale * trainer.part.micro_batches)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        torch_xla.sync(wait=True)
        now = time.perf_counter()
        seconds, norm = now - self.started, float(trainer.grad_norm)
        if not math.isfinite(norm):
            trainer.check_finite(f"the gradient norm is {norm}", updated=True)
        epoch = state.global_step * trainer.part.config.training.global_batch_size / len(trainer.rows)
        state.epoch = epoch
        rows = trainer.rows_of(state.global_step)
        trainer.observer.on_step(
            StepReport(state.global_step, epoch, trainer.step_counts, seconds, self.learning_rate, norm, rows)
        )
        trainer.checkpoints.poll()
        control.should_training_stop |= trainer.between_steps(state.global_step)
        # What lies between two steps belongs to neither.
        self.started = time.perf_counter()
