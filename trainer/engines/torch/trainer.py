"""transformers.Trainer on packed rows: its loop, optimizer, schedule, DDP; our loss, counts, order, checkpoints."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from launcher.config.schema import Config, accumulation_steps, offloads
from launcher.errors import TrntuneError
from launcher.plan.steps import warmup_steps
from trainer.checkpoints import rng
from trainer.checkpoints.parts import PARTS
from trainer.checkpoints.state import Checkpoints, EngineState
from trainer.data.collate import counts_of
from trainer.data.order import MicroBatches, rows_of_step
from trainer.device import CPU, has_fixed_shapes, optimizer, pins_memory
from trainer.engines.base import Rows, TrainingCallback, non_finite
from trainer.engines.early_stopping import BestWeights
from trainer.engines.state import ENGINE, copied, hand_over, restore_rng, restore_scheduler, rng_file
from trainer.engines.torch import state as state_files
from trainer.engines.torch.data_loader import RowLoader, trained_labels
from trainer.engines.torch.evaluation import held_out_loss
from trainer.engines.torch.meter import StepAtHand, StepMeter
from trainer.engines.torch.parts import Regrouped, whole
from trainer.engines.torch.process_group import backend_of
from trainer.engines.torch.replica import Replica
from trainer.engines.warmup import begin_above_zero
from trainer.metrics.throughput import StepReport, Stopwatch


def training_arguments(config: Config, steps: int, replica: int = 0) -> TrainingArguments:
    """The configuration in transformers' terms, of a replica by its number. Saving, logging to disk and progress are
    not left to the Trainer."""
    training = config.training
    return TrainingArguments(
        output_dir=".",  # it is made when missing, and nothing is written there
        max_steps=steps,
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=accumulation_steps(config),
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=warmup_steps(config, steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=optimizer(CPU if offloads(config) else config.accelerator.device),
        bf16=training.precision == "bf16",
        use_cpu=config.accelerator.device == CPU,
        ddp_backend=backend_of(config),
        # A replica's tokens may go to none of an expert's, and families may have layers that texts don't use.
        ddp_find_unused_parameters=config.model.architecture is None,
        # The Trainer seeds with it once the model is there: each replica drops out other values of its rows.
        seed=config.seed + replica,
        eval_strategy="no" if training.eval_every is None else "steps",
        eval_steps=training.eval_every,
        save_strategy="no",
        logging_steps=1,
        # A NaN must not be averaged away: it ends the run.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=pins_memory(config.accelerator.device),
    )


class PackedTrainer(Trainer):
    """One training of one rank.

    The methods whose names begin with an underscore are transformers' own affair, and may change with any version of
    it: each names those that it holds for, and a test compares their signatures.
    """

    def __init__(
        self,
        replica: Replica,
        arguments: TrainingArguments,
        rows: Rows,
        eval_rows: Rows,
        observer: TrainingCallback,
        checkpoints: Checkpoints,
        stopwatch: Stopwatch,
        best: BestWeights,
    ) -> None:
        self.replica, self.rows, self.eval_rows, self.observer = replica, rows, eval_rows, observer
        self.checkpoints, self.stopwatch, self.best = checkpoints, stopwatch, best
        self.step = StepAtHand()
        super().__init__(
            model=replica.module,
            args=arguments,
            train_dataset=rows,
            eval_dataset=eval_rows,
            data_collator=replica.collator,
            callbacks=[StepMeter(replica, self.step, observer, checkpoints, best, self.check_step)],
        )
        # Ours is normalized by the labels of the whole step, over all micro batches and replicas.
        self.model_accepts_loss_kwargs = True
        self.restored: Regrouped | None = None
        self._prepare_model = self.accelerator.prepare_model
        if replica.shards is not None:
            self.accelerator.prepare_model = self._only_autocast
        elif has_fixed_shapes(arguments.device.type) and replica.group.ranks > 1:
            self.accelerator.prepare_model = self._in_ddp
        self._clip = self.accelerator.clip_grad_norm_
        self.accelerator.clip_grad_norm_ = self._clip_and_remember

    def train_from(self, resumed: Regrouped | None, total_steps: int) -> None:
        """Train to the end, from the beginning or from a checkpoint."""
        if resumed is None:
            self.train()
            return
        self.restored, self.replica.updated = resumed, True
        self.state = TrainerState(global_step=resumed.step, train_batch_size=self.args.train_batch_size)
        if resumed.document(ENGINE)["evaluation_pending"]:
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
        config = self.replica.config
        return rows_of_step(step, len(self.rows), config.training.global_batch_size, config.seed)

    def get_train_dataloader(self) -> RowLoader:
        group, size = self.replica.group, self.args.per_device_train_batch_size
        self.sampler = MicroBatches(
            len(self.rows), self.replica.config.seed, size, group.replica, group.replicas,
            self.args.gradient_accumulation_steps,
        )  # fmt: skip
        pin = self.args.dataloader_pin_memory
        return RowLoader(self.rows, self.sampler, collate_fn=self.replica.collator, pin_memory=pin)

    def check_step(self) -> None:
        """Raise TrntuneError before an update that must not be made."""
        self.check_rows()
        self.check_finite()

    def check_rows(self) -> None:
        """Raise TrntuneError unless the step was given its own rows: a run that goes on, or a library that is upgraded,
        could else train on others while the record says these."""
        step = self.state.global_step + 1
        expected, taken = list(self.sampler.own(self.rows_of(step))), list(self.sampler.taken)
        if taken != expected:
            raise TrntuneError(
                f"step {step} was given the rows {taken} instead of {expected}: the Trainer of "
                f"transformers {transformers.__version__} goes through the data in another way; nothing was updated"
            )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        """Labels that count in this optimizer step, all micro batches and replicas; at least 1 (a step of padding).

        Called by get_batch_samples of transformers 4.57 and 5.24."""
        if not batch_samples:  # the end of a pass that was gone into in the middle, the same on every rank
            return None
        group = self.replica.group
        own = trained_labels(batch_samples, group.counts) * group.speaks
        labels = group.all_reduce(own).clamp(min=1)
        # A number of the host's would be a constant of a graph, and another one each step.
        return labels.to(device, torch.float32) if has_fixed_shapes(device.type) else labels

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Counts stay on the host where the device would compile for reading them; ``compute_loss`` moves the rest.

        Called by training_step of transformers 4.57 and 5.24."""
        if has_fixed_shapes(self.args.device.type):
            return inputs
        return super()._prepare_inputs(inputs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss: torch.Tensor = model(**self.replica.inputs(inputs))
        counts = counts_of(inputs, self.replica.extents)
        counts.loss_sum = float(loss.detach())
        self.step.local += counts
        # DDP averages gradients over the replicas; the sum is wanted.
        return loss * self.replica.group.replicas / num_items_in_batch

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Exact held-out loss over all rows, instead of Trainer's mean of batch means."""
        with self.stopwatch.part("eval"):
            metrics = {"eval_loss": held_out_loss(self.replica, self.eval_rows)}
        self.observer.on_evaluation(self.state.global_step, metrics["eval_loss"])
        self.best.look(self.state.global_step, metrics["eval_loss"])
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
                counts=self.step.counts,
                seconds=self.step.seconds,
                learning_rate=logs["learning_rate"],
                grad_norm=self.step.grad_norm,
                rows=self.rows_of(self.state.global_step),
            )
        )
        self.checkpoints.poll()

    def check_finite(self) -> None:
        """Raise NonFiniteLossError before an update that would break the weights, once the last good state is saved."""
        loss, norm = self.step.counts.loss_sum, self.step.grad_norm
        if math.isfinite(loss) and math.isfinite(norm):
            return
        step = self.state.global_step + 1
        self.checkpoints.wait()
        if self.state.global_step > self.checkpoints.saved_step:
            self._save_state(self.step.rng_before)
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
        raise non_finite(step, what, self.observer.lines(self.rows_of(step)))

    def store_flos(self) -> None:
        """The Trainer's own count of operations, which nothing here reads, is an int64 sum over the devices of all
        ranks: TorchNeuron's compiler is to refuse those."""

    def _clip_and_remember(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        norm: torch.Tensor = whole(self._clip(*args, **kwargs))
        self.step.grad_norm = float(norm)
        return norm

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """It is where it belongs: on the device, or its parts in host memory.

        Called by __init__ of transformers 4.57 and 5.24."""

    def _only_autocast(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Of what accelerate prepares a model with: it is on its device and sharded, and must not get into DDP."""
        return self._prepare_model(model, device_placement=False, evaluation_mode=True)

    def _in_ddp(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """The same in DDP, whose own beginning would send int64 numbers between the devices. accelerate's DDP takes
        LOCAL_RANK for the device, where each process may see one alone, the first."""
        self.replica.group.spread(self.replica.trainable())
        unused = bool(self.args.ddp_find_unused_parameters)
        prepared = self._only_autocast(model)
        return DistributedDataParallel(prepared, init_sync=False, find_unused_parameters=unused)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Called where control.should_save asks for it, by transformers 4.57 and 5.24: after the step, its log and its
        evaluation."""
        if self.state.global_step > self.checkpoints.saved_step:
            self._save_state(rng.capture())

    def _save_state(self, generators: rng.RngState) -> None:
        hand_over(lambda: self._captured(generators), self.checkpoints, self.stopwatch)

    def _captured(self, generators: rng.RngState) -> EngineState:
        replica = self.replica
        tensors = {rng_file(replica.group.rank): generators}
        documents: dict[str, Any] = {}
        if replica.group.rank == 0 or replica.shards is not None:  # else what all replicas have alike
            moments = state_files.optimizer_tensors(self.inner_optimizer, replica.module)
            tensors[replica.file(state_files.weights_file(replica.model))] = copied(replica.weights())
            tensors[replica.file(state_files.OPTIMIZER)] = copied(moments)
            if self.best.weights:
                tensors[replica.file(state_files.BEST)] = self.best.weights
        if replica.group.rank == 0:
            if replica.shards is not None:
                documents[PARTS] = replica.layout().document()
            name, document = state_files.config_document(replica.model, replica.base_config)
            documents[name] = document
            documents[ENGINE] = {
                "engine": "torch",
                "best": self.best.state(),
                "evaluation_pending": self.step.evaluation_pending,
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
            begin_above_zero(scheduler, self.replica.config, num_training_steps)
        return scheduler

    # What the Trainer calls while it goes on from a checkpoint.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights are in place already. Called by train of transformers 4.57 and 5.24."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Called by transformers 4.57 and 5.24 once both are made, with None in a run from the beginning."""
        if self.restored is not None:
            stored = self.restored.tensors(state_files.OPTIMIZER)
            state_files.restore_optimizer(self.inner_optimizer, self.replica.module, stored)
            scheduler: Any = self.lr_scheduler
            restore_scheduler(scheduler, self.restored.step)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called by transformers 4.57 and 5.24 where a run goes on, before the first step that it trains."""
        if self.restored is not None:
            restore_rng(self.restored.stored, self.replica.group.rank)
