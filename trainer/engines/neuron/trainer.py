"""optimum-neuron's NeuronTrainer on our rows: its loop, optimizer, ZeRO-1; our loss, order, evaluation, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import optimum.neuron.accelerate.optimizer as neuron_optimizer
import torch
import torch_xla
import torch_xla.core.xla_model as xm
from neuronx_distributed.parallel_layers.parallel_state import get_tensor_model_parallel_replica_groups
from optimum.neuron import NeuronTrainer, NeuronTrainingArguments
from transformers import TrainerCallback

from launcher.config.schema import Config, accumulation_steps
from trainer.checkpoints import rng
from trainer.compilation.trial import tracing
from trainer.data.collate import counts_of
from trainer.data.order import rows_of_step
from trainer.engines.base import Checkpoints, NonFiniteLossError, RestoredState, Rows, StepReport, TrainingCallback
from trainer.engines.neuron import patches as neuron_patches
from trainer.engines.neuron import state as neuron_state
from trainer.engines.neuron.batch import attention_bias, host_batch, trained_labels
from trainer.engines.torch import state as torch_state
from trainer.engines.warmup import begin_above_zero
from trainer.metrics.throughput import Counts, Stopwatch
from trainer.signals import BestEvaluation, Stop

if TYPE_CHECKING:
    from trainer.engines.neuron.engine import NeuronEngine

XLA_SEED = "xla"


def training_arguments(config: Config) -> NeuronTrainingArguments:
    """The configuration in optimum-neuron's terms. Saving, logging, evaluation and progress are not left to it.

    Making them joins the process group and makes the parallel groups.
    """
    training, parallel = config.training, config.parallelism
    return NeuronTrainingArguments(
        output_dir=".",  # nothing is written there
        max_steps=1,  # until the rows are known
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=accumulation_steps(config),
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=0,  # set with max_steps
        weight_decay=training.weight_decay,
        # The norm is measured where it is limited: without a limit it still is.
        max_grad_norm=training.max_grad_norm or math.inf,
        optim="adamw_torch",
        bf16=training.precision == "bf16",
        zero_1=parallel.zero_1,
        optimizer_save_master_weights_in_ckpt=parallel.zero_1,  # what we do: else each rank warns that it isn't done
        tensor_parallel_size=parallel.tensor_parallel,
        pipeline_parallel_size=parallel.pipeline_parallel,
        disable_sequence_parallel=not parallel.sequence_parallel,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={},  # None fails (peft 0.17 asks it for use_reentrant)
        # Its own mask is causal alone; several documents in a row need ours.
        recompute_causal_mask=not config.dataset.packing,
        save_strategy="no",
        logging_strategy="no",
        enable_throughput_metrics=False,
        enable_mfu_metrics=False,
        enable_efficiency_metrics=False,
        skip_cache_push=True,  # else training ends with a look at the Hub
        disable_tqdm=True,
        report_to=[],
        log_level="error",
        log_level_replica="error",
    )


class Remaining:
    """The micro batches of one replica from one step to the last, as optimum-neuron's only pass: its loop begins each
    pass at the front and can't go on in the middle of one."""

    sampler = None
    dataset = None

    def __init__(self, trainer: DocumentTrainer, done: int, total: int) -> None:
        self.trainer, self.done, self.total = trainer, done, total

    def __len__(self) -> int:
        return (self.total - self.done) * accumulation_steps(self.trainer.engine.config)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        engine = self.trainer.engine
        size, replica, replicas = engine.config.training.micro_batch_size, engine.place.data, engine.replicas
        for step in range(self.done + 1, self.total + 1):
            rows = self.trainer.rows_of(step)
            for start in range(replica * size, len(rows), replicas * size):
                yield engine.collator([self.trainer.rows[row] for row in rows[start : start + size]])


class DocumentTrainer(NeuronTrainer):
    """One training of one rank."""

    model: Any
    rows: Rows
    eval_rows: Rows
    observer: TrainingCallback
    checkpoints: Checkpoints
    stopwatch: Stopwatch
    best: BestEvaluation

    def __init__(self, engine: NeuronEngine, arguments: NeuronTrainingArguments, model: Any) -> None:
        self.engine = engine
        neuron_optimizer.allreduce_sequence_parallel_gradients = _reduce_over_tensor_parallel
        super().__init__(model, arguments, data_collator=engine.collator, callbacks=[StepMeter(self)])
        self.metrics_collector.enabled = False  # with none of its metrics wanted it still times parts
        self.model = self.accelerator.prepare_model(self.model)
        self.counts, self.step_counts = Counts(), Counts()
        self.loss_sums: list[torch.Tensor] = []
        self.scale = torch.ones(())
        self.stop = Stop.NO
        self.evaluation_pending = False
        self.restored: RestoredState | None = None
        self.state_before_step = self.capture_rng()

    # What the run is.

    def rows_of(self, step: int) -> list[int]:
        """The training rows of a step, on all replicas."""
        config = self.engine.config
        return rows_of_step(step, len(self.rows), config.training.global_batch_size, config.seed)

    def get_train_dataloader(self) -> Remaining:
        return Remaining(self, self.restored.step if self.restored else 0, self.args.max_steps)

    def set_initial_training_values(self, args: Any, dataloader: Any, total_train_batch_size: int) -> tuple[Any, ...]:
        """One pass over what remains; the schedule is that of the whole run."""
        steps = len(dataloader) // args.gradient_accumulation_steps
        return 1, steps, len(self.rows), steps * total_train_batch_size, False, len(dataloader), args.max_steps

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """The NeuronTrainer's, with our warm-up."""
        created = self.lr_scheduler is None
        super().create_scheduler(num_training_steps, optimizer)
        if created:
            begin_above_zero(self.lr_scheduler, self.engine.config, self.args.max_steps)

    def setup_training(self, *args: Any, **kwargs: Any) -> None:
        """Then put everything where the checkpoint found it. The weights are in place already."""
        super().setup_training(*args, **kwargs)
        if self.restored is None:
            return
        self.state.global_step = self.restored.step
        inner = self.inner_optimizer
        neuron_state.restore_optimizer(inner, self.model, self.restored.tensors(self.engine.optimizer_file))
        torch_state.restore_scheduler(self.lr_scheduler, self.restored.step)
        self.restore_rng(self.restored.tensors(torch_state.rng_file(self.engine.rank)))
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
        config = self.engine.config
        batches = list(islice(epoch_iterator, num_batches))
        self.counts = sum((counts_of(batch) for batch in batches), Counts())
        rows = self.rows_of(self.state.global_step + 1)
        trained = trained_labels([self.rows[row] for row in rows])
        # Gradients are averaged over the replicas; the sum is wanted.
        self.scale = torch.tensor(self.engine.replicas / max(trained, 1), dtype=torch.float32).to(device)
        self.state_before_step = self.capture_rng()
        hosts = [host_batch(batch, config.dataset.packing) for batch in batches]
        return [{name: tensor.to(device) for name, tensor in host.items()} for host in hosts], None

    def loss_sum(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Summed negative log-likelihood (nats) of the labels of one micro batch on the device."""
        self.engine.note_shapes(inputs)
        inputs = dict(inputs)
        if "documents" in inputs:
            inputs["attention_mask"] = attention_bias(inputs.pop("documents"), self.engine.dtype)
        loss: torch.Tensor = self.model(**inputs, reduction="sum").loss
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss = self.loss_sum(inputs)
        self.loss_sums.append(loss.detach())
        return loss * self.scale

    def refuse_not_finite(self, what: str, updated: bool) -> None:
        """Raise NonFiniteLossError. The last good state is saved first, where it is still there. In a trial run no
        number means anything: nothing is executed."""
        if tracing():
            return
        step = self.state.global_step + (0 if updated else 1)
        self.checkpoints.wait()
        if not updated and self.state.global_step > self.checkpoints.saved_step:
            self.engine.save_state(self.state_before_step)
        lines = self.observer.lines(self.rows_of(step))
        shown = ", ".join(map(str, lines[:8])) + (", ..." if len(lines) > 8 else "")
        outcome = "is lost since the last checkpoint" if updated else "were not updated"
        subject = "what was trained" if updated else "the weights"
        raise NonFiniteLossError(
            f"step {step}: {what}, so {subject} {outcome}; lower training.learning_rate or look at the rows of this "
            f"step (lines {shown} of the data set)"
        )

    # The random generators, with the device's own.

    def capture_rng(self) -> rng.RngState:
        # The seed has 64 bits without a sign, which no safetensors type for torch 2.8 holds: two halves.
        high, low = divmod(int(xm.get_rng_state()), 1 << 32)
        return {**rng.capture(), XLA_SEED: torch.tensor([high, low], dtype=torch.int64)}

    def restore_rng(self, state: rng.RngState) -> None:
        rng.restore(state)
        high, low = state[XLA_SEED].tolist()
        xm.set_rng_state((high << 32) + low)


def _reduce_over_tensor_parallel(optimizer: Any) -> None:
    groups = get_tensor_model_parallel_replica_groups()

    def reduce(gradient: torch.Tensor) -> None:
        xm.all_reduce(xm.REDUCE_SUM, [gradient], groups=groups, pin_layout=False)

    neuron_patches.reduce_sequence_parallel_gradients(optimizer, reduce)


class StepMeter(TrainerCallback):
    """Sums the counts over the replicas, measures each step, and does between two steps what is due."""

    def __init__(self, trainer: DocumentTrainer) -> None:
        self.trainer = trainer
        self.started = 0.0
        self.learning_rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, engine = self.trainer, self.trainer.engine
        trainer.counts.loss_sum = sum(float(loss) for loss in trainer.loss_sums)
        trainer.loss_sums = []
        # One exchange carries the counts and the wishes to stop: all ranks leave after the same step.
        wish = trainer.observer.stop_requested()
        trainer.step_counts, trainer.stop = engine.agree(trainer.counts, wish)
        self.learning_rate = trainer._get_last_learning_rate()
        neuron_patches.set_learning_rates(trainer.inner_optimizer, trainer.lr_scheduler.get_last_lr())
        if not math.isfinite(trainer.step_counts.loss_sum):
            trainer.refuse_not_finite(f"the loss is {trainer.step_counts.loss_sum}", updated=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, engine = self.trainer, self.trainer.engine
        torch_xla.sync(wait=True)
        now = time.perf_counter()
        seconds, norm = now - self.started, float(trainer.grad_norm)
        if not math.isfinite(norm):
            trainer.refuse_not_finite(f"the gradient norm is {norm}", updated=True)
        epoch = state.global_step * engine.config.training.global_batch_size / len(trainer.rows)
        state.epoch = epoch
        rows = trainer.rows_of(state.global_step)
        trainer.observer.on_step(
            StepReport(state.global_step, epoch, trainer.step_counts, seconds, self.learning_rate, norm, rows)
        )
        trainer.checkpoints.poll()
        control.should_training_stop |= engine.between_steps(state.global_step)
        # What lies between two steps belongs to neither.
        self.started = time.perf_counter()
