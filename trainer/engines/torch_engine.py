"""The torch engine: transformers.Trainer on CPU or CUDA, one process a replica, started by torchrun when several."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from launcher.errors import TrntuneError
from launcher.schema import Config, accumulation_steps
from trainer.attention import DOCUMENT_ATTENTION
from trainer.causal_lm import CausalLMLoss
from trainer.data.collate import Collator
from trainer.engines.base import FitResult, Observer, ParameterCounts, Rows, StepReport
from trainer.models.load import apply_method, count_parameters, load_model
from trainer.throughput import Counts, ModelSize, Stopwatch

MODEL_INPUTS = ("input_ids", "position_ids", "documents", "targets")


def create(config: Config) -> TorchEngine:
    """Join the process group, if torchrun made one, and take the device."""
    return TorchEngine(config)


def training_arguments(config: Config, work_dir: Path, total_steps: int) -> TrainingArguments:
    """The configuration in transformers' terms. Saving, logging to disk and progress are not left to the Trainer."""
    training = config.training
    return TrainingArguments(
        output_dir=str(work_dir),
        max_steps=total_steps,
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=accumulation_steps(config),
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=training.precision == "bf16",
        use_cpu=config.accelerator.device == "cpu",
        ddp_backend=config.accelerator.backend if config.parallelism.data_parallel > 1 else None,
        ddp_find_unused_parameters=False,
        seed=config.seed,
        eval_strategy="no" if training.eval_every is None else "steps",
        eval_steps=training.eval_every,
        save_strategy="no",
        logging_steps=1,
        # A NaN must not be averaged away: it ends the run.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=config.accelerator.device == "cuda",
    )


def total_steps(config: Config, rows: int) -> int:
    """Optimizer steps of the run: by epochs, at most max_steps. An epoch is whole steps (prepare sees to it)."""
    by_epochs = math.ceil(config.training.epochs * (rows // config.training.global_batch_size))
    return by_epochs if config.training.max_steps is None else min(by_epochs, config.training.max_steps)


def batch_counts(batch: dict[str, torch.Tensor]) -> Counts:
    """What one micro batch holds, before its loss is known."""
    lengths = (batch["documents"][:, 2] - batch["documents"][:, 1]).double()
    return Counts(
        examples=int(batch["num_examples"]),
        tokens=int(batch["num_tokens"]),
        positions=batch["input_ids"].numel(),
        trained=int(batch["num_trained"]),
        pairs=float((lengths * (lengths + 1) / 2).sum()),
    )


class TorchEngine:
    """See trainer.engines.base.Engine."""

    model: PreTrainedModel | PeftModel
    module: CausalLMLoss

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.accelerator.device == "cuda" and not torch.cuda.is_available():
            raise TrntuneError("accelerator.device=cuda: torch sees no CUDA device here; use accelerator=cpu")
        # Building the arguments makes accelerate join torchrun's process group; its state is then global.
        arguments = training_arguments(config, Path(), total_steps=1)
        self.device: torch.device = arguments.device
        self.rank: int = arguments.process_index
        self.replicas: int = arguments.world_size

    def load(self, model_dir: Path, tokenizer: Any) -> None:
        """Load the model, add the adapter, and put it on the device."""
        self.tokenizer = tokenizer
        self.collator = Collator(self.config.training.max_length, tokenizer.pad_token_id)
        set_seed(self.config.seed)
        base = load_model(model_dir, self.config, attn_implementation=DOCUMENT_ATTENTION)
        if self.config.training.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        self.model = apply_method(base, self.config)
        nn.Module.to(self.model, self.device)
        self.module = CausalLMLoss(self.model)

    def parameters(self) -> ParameterCounts:
        total, trainable = count_parameters(self.model)
        return ParameterCounts(total, trainable, trainable)

    def model_size(self) -> ModelSize:
        """Parameters that take part in matrix products, and the width of attention."""
        counts = self.parameters()
        base: Any = self.module.model
        config = base.config
        tied = base.get_input_embeddings().weight is base.get_output_embeddings().weight
        lookup = 0 if tied else base.get_input_embeddings().weight.numel()
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return ModelSize(
            matmul_params=counts.total - lookup,
            adapter_params=counts.trainable if self.config.method.name == "lora" else 0,
            attention_width=config.num_hidden_layers * config.num_attention_heads * head_size,
        )

    def evaluate(self, rows: Rows) -> float:
        """Every replica takes its share of the rows and sums are added: no replica's mean weighs more than others."""
        size = self.config.training.micro_batch_size
        share = rows[self.rank :: self.replicas]
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.module.eval()
        with torch.inference_mode(), self._autocast():
            for start in range(0, len(share), size):
                batch = self.collator(share[start : start + size])
                loss: torch.Tensor = self.module(**{name: batch[name].to(self.device) for name in MODEL_INPUTS})
                totals += torch.stack([loss.double(), batch["num_trained"].double().to(self.device)])
        self.all_reduce(totals)
        mean = float(totals[0] / totals[1])
        if not math.isfinite(mean):
            raise TrntuneError(f"the held-out loss is {mean}: the weights are broken; lower training.learning_rate")
        return mean

    def total_steps(self, rows: int) -> int:
        return total_steps(self.config, rows)

    def fit(self, rows: Rows, eval_rows: Rows, observer: Observer, work_dir: Path, stopwatch: Stopwatch) -> FitResult:
        """Train with transformers.Trainer until the steps are done, evaluation stops improving, or a stop is asked."""
        arguments = training_arguments(self.config, work_dir, total_steps(self.config, len(rows)))
        best = BestWeights(self, work_dir / "best.safetensors")
        trainer = PackedTrainer(self, arguments, rows, eval_rows, observer, stopwatch, best)
        trainer.train()
        if trainer.interrupted:
            status = "interrupted"
        elif best.patience_ended:
            status = "early_stopped"
        else:
            status = "finished"
        best.restore()
        return FitResult(status, trainer.state.global_step, best.step)

    def answer(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy decoding of all prompts in one left-padded batch."""
        batch = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(self.device)
        base: Any = self.module.model
        self.module.eval()
        # Cached decoding has queries and keys of different lengths and padding on the left: transformers' own SDPA.
        with self._plain_attention(), torch.inference_mode(), self._autocast():
            output = base.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return [
            until_eos(ids, self.tokenizer.eos_token_id) for ids in output[:, batch["input_ids"].shape[1] :].tolist()
        ]

    def save(self, directory: Path) -> None:
        """safetensors in Hugging Face's layout: peft's for an adapter, a model directory with tokenizer for full."""
        # The attention function is this process's: a reader of config.json must not look for it.
        with self._plain_attention():
            self.model.save_pretrained(str(directory))
        self.tokenizer.save_pretrained(directory)

    def peak_memory(self) -> tuple[int, int | None]:
        host = torch.tensor(float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024), dtype=torch.float64)
        host = self.all_reduce(host.to(self.device))
        if self.device.type != "cuda":
            return int(host), None
        device = torch.tensor(float(torch.cuda.max_memory_allocated(self.device)), dtype=torch.float64)
        return int(host), int(self.all_reduce(device.to(self.device), dist.ReduceOp.MAX))

    def all_reduce(self, values: torch.Tensor, op: Any = dist.ReduceOp.SUM) -> torch.Tensor:
        """``values``, reduced over the replicas in place."""
        if self.replicas > 1:
            dist.all_reduce(values, op)
        return values

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def _plain_attention(self) -> Iterator[None]:
        """Inside, the model uses transformers' SDPA instead of attention by documents."""
        self.module.model.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            self.module.model.set_attn_implementation(DOCUMENT_ATTENTION)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.training.precision == "bf16"):
            yield


def until_eos(ids: list[int], eos: int) -> list[int]:
    """``ids`` up to the first EOS, which is left out."""
    return ids[: ids.index(eos)] if eos in ids else ids


class BestWeights(TrainerCallback):
    """Early stopping: keeps the trainable weights of the lowest evaluation on disk, ends training without progress."""

    def __init__(self, engine: TorchEngine, file: Path) -> None:
        self.engine, self.file = engine, file
        self.patience = engine.config.training.early_stopping_patience
        self.loss, self.step = math.inf, None  # type: float, int | None
        self.without_progress = 0

    @property
    def patience_ended(self) -> bool:
        return self.patience is not None and self.without_progress >= self.patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.patience is None:
            return
        metrics: dict[str, float] = kwargs["metrics"]
        if metrics["eval_loss"] < self.loss - self.engine.config.training.early_stopping_min_delta:
            self.loss, self.step, self.without_progress = metrics["eval_loss"], state.global_step, 0
            self._store()
        else:
            self.without_progress += 1
        # The loop asks should_training_stop after evaluating, so training ends with this step.
        control.should_training_stop |= self.patience_ended

    def restore(self) -> None:
        """Put the best weights back, on every rank, when an evaluation stored some."""
        if self.step is None:
            return
        if dist.is_initialized():
            dist.barrier()
        stored = load_file(self.file)
        with torch.no_grad():
            for name, parameter in self._trainable():
                parameter.copy_(stored[name])
        if dist.is_initialized():
            dist.barrier()
        if self.engine.rank == 0:
            self.file.unlink()

    def _store(self) -> None:
        if self.engine.rank == 0:
            temporary = self.file.with_suffix(".tmp")
            save_file({name: p.detach().cpu().contiguous() for name, p in self._trainable()}, temporary)
            temporary.replace(self.file)

    def _trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.engine.module.named_parameters() if p.requires_grad]


class PackedTrainer(Trainer):
    """transformers.Trainer on packed rows: its loop, optimizer, schedule and DDP; our loss, counts and evaluation."""

    def __init__(
        self,
        engine: TorchEngine,
        arguments: TrainingArguments,
        rows: Rows,
        eval_rows: Rows,
        observer: Observer,
        stopwatch: Stopwatch,
        best: BestWeights,
    ) -> None:
        self.engine, self.eval_rows, self.observer, self.stopwatch = engine, eval_rows, observer, stopwatch
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
        self.interrupted = False

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Labels that count in this optimizer step, all micro batches and replicas; at least 1 (a step of padding)."""
        trained = torch.stack([batch["num_trained"] for batch in batch_samples]).sum().to(device)
        return self.engine.all_reduce(trained).clamp(min=1)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss: torch.Tensor = model(**{name: inputs[name] for name in MODEL_INPUTS})
        counts = batch_counts(inputs)
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
        """Called after each step with the gradient norm and the learning rate that the step used."""
        if "learning_rate" not in logs:
            return  # the closing summary: its speed counts rows, not samples
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            raise TrntuneError(
                f"step {self.state.global_step}: the gradient norm is {logs['grad_norm']}, which has broken the "
                "weights, so nothing is saved; lower training.learning_rate or use training.precision=fp32"
            )
        self.observer.on_step(
            StepReport(
                step=self.state.global_step,
                epoch=float(self.state.epoch or 0.0),
                counts=self.step_counts,
                seconds=self.step_seconds,
                learning_rate=logs["learning_rate"],
                grad_norm=logs.get("grad_norm"),
            )
        )


class StepMeter(TrainerCallback):
    """Sums the counts over the replicas before the update, and measures each step."""

    def __init__(self, trainer: PackedTrainer) -> None:
        self.trainer = trainer
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, engine = self.trainer, self.trainer.engine
        # One collective carries the counts and the wish to stop: all ranks leave after the same step.
        local = [*trainer.counts.as_list(), float(trainer.observer.stop_requested())]
        *counts, stop = engine.all_reduce(torch.tensor(local, dtype=torch.float64, device=engine.device)).tolist()
        trainer.step_counts, trainer.counts = Counts(*counts), Counts()
        trainer.interrupted = stop > 0
        if not math.isfinite(trainer.step_counts.loss_sum):
            raise TrntuneError(
                f"step {state.global_step + 1}: the loss is {trainer.step_counts.loss_sum}, so the weights were not "
                "updated and nothing is saved; lower training.learning_rate or look at the data of this step"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.engine.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.trainer.step_seconds, self.started = now - self.started, now
        control.should_training_stop |= self.trainer.interrupted

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Evaluation lies between two steps: the next one is measured from here.
        self.started = time.perf_counter()
