"""The torch engine: transformers.Trainer on CPU or CUDA, one process a replica, started by torchrun when several."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainingArguments, set_seed

from launcher.architecture.adapters import Modules
from launcher.architecture.attention_pairs import Extents
from launcher.config.schema import Config, accumulation_steps
from launcher.errors import TrntuneError
from launcher.plan.steps import total_steps, warmup_steps
from trainer.checkpoints import durable
from trainer.checkpoints.peers import Peers, SingleProcess
from trainer.checkpoints.writer import not_finite
from trainer.data.collate import Collator
from trainer.data.turn_end import ends_of, until_end
from trainer.engines.base import (
    Checkpoints,
    FitResult,
    NonFiniteLossError,
    ParameterCounts,
    Rows,
    TrainingCallback,
    model_size,
)
from trainer.engines.gloo import GlooPeers
from trainer.engines.torch import state
from trainer.engines.torch.trainer import BestWeights, PackedTrainer
from trainer.families.answers import FASTEST, Answering, continuations
from trainer.families.choose import enable_checkpointing, way_of_answering, way_of_training
from trainer.families.pairs import layer_extents
from trainer.families.proof import Way
from trainer.fused import fuse
from trainer.metrics.throughput import ModelSize, Stopwatch
from trainer.models.adapt import modules_of
from trainer.models.attention import DOCUMENT_ATTENTION
from trainer.models.causal_lm import MODEL_INPUTS, CausalLMLoss
from trainer.models.generation import mend_generation
from trainer.models.load import apply_method, count_parameters, load_model, refuse_few_embeddings
from trainer.models.unchanged import checksums
from trainer.signals import Stop


def create(config: Config) -> TorchEngine:
    """Join the process group, if torchrun made one, and take the device."""
    return TorchEngine(config)


def training_arguments(config: Config, steps: int) -> TrainingArguments:
    """The configuration in transformers' terms. Saving, logging to disk and progress are not left to the Trainer."""
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
        optim="adamw_torch_fused",
        bf16=training.precision == "bf16",
        use_cpu=config.accelerator.device == "cpu",
        ddp_backend=config.accelerator.backend if config.parallelism.data_parallel > 1 else None,
        # A replica's tokens may go to none of an expert's, and families may have layers that texts don't use.
        ddp_find_unused_parameters=config.model.architecture is None,
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


class TorchEngine:
    """See trainer.engines.base.Engine."""

    sharded = False
    can_answer = True
    notes: Sequence[str] = ()
    model: PreTrainedModel | PeftModel
    module: CausalLMLoss
    modules: Modules
    way: Way
    extents: Extents
    updated = False
    """the weights are no longer the base's"""

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.accelerator.device == "cuda" and not torch.cuda.is_available():
            raise TrntuneError("accelerator.device=cuda: torch sees no CUDA device here; use accelerator=cpu")
        # Building the arguments makes accelerate join torchrun's process group; its state is then global.
        arguments = training_arguments(config, steps=1)
        self.device: torch.device = arguments.device
        self.rank: int = arguments.process_index
        self.replicas: int = arguments.world_size

    def load(self, model_dir: Path, tokenizer: Any) -> None:
        """Load the model, add the adapter, and put it on the device."""
        self.tokenizer, self.model_dir = tokenizer, model_dir
        self.collator = Collator(self.config.training.max_length, tokenizer.pad_token_id)
        set_seed(self.config.seed)
        self.way = way_of_training(model_dir, self.config)
        self.attention = DOCUMENT_ATTENTION if self.way.packed is None else self.way.attention
        base = load_model(model_dir, self.config, self.attention, self.device)
        if self.config.method.name == "full":  # an adapter is saved without them
            self.notes = mend_generation(base, model_dir, ends_of(tokenizer))
        refuse_few_embeddings(base, tokenizer, model_dir)
        if self.config.training.gradient_checkpointing:
            enable_checkpointing(base)
        self.modules = modules_of(base)
        self.model = apply_method(base, self.config)
        nn.Module.to(self.model, self.device)
        fuse(self.model)
        self.extents = layer_extents(base.config)
        self.module = CausalLMLoss(self.model, self.way)

    def parameters(self) -> ParameterCounts:
        total, trainable = count_parameters(self.model)
        return ParameterCounts(total, trainable, trainable)

    def model_size(self) -> ModelSize:
        return model_size(self.module.model, self.parameters(), self.config, self.modules)

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
            raise TrntuneError(f"the held-out loss is {mean}: {self._why_not_finite()}")
        return mean

    def _why_not_finite(self) -> str:
        """The base's weights were finite when they were loaded."""
        if bad := not_finite(state.live_weights(self.model)):
            return f"{bad} holds numbers that are not finite; lower training.learning_rate"
        if self.updated:
            return "the weights are finite, but too large; lower training.learning_rate"
        precision = self.config.training.precision
        advice = "take training.precision=fp32" if precision != "fp32" else "take another model"
        return f"the base's own, though its weights are finite, with training.precision={precision}; {advice}"

    def total_steps(self, rows: int) -> int:
        return total_steps(self.config, rows)

    def peers(self) -> Peers:
        return SingleProcess() if self.replicas == 1 else GlooPeers(self.rank)

    def fit(
        self, rows: Rows, eval_rows: Rows, observer: TrainingCallback, checkpoints: Checkpoints, stopwatch: Stopwatch
    ) -> FitResult:
        """Train with transformers.Trainer until the steps are done, evaluation stops improving, or a stop is asked."""
        total, resumed = total_steps(self.config, len(rows)), checkpoints.resumed
        best = BestWeights(self)
        trainer = PackedTrainer(self, training_arguments(self.config, total), rows, eval_rows, observer, best)
        trainer.checkpoints, trainer.stopwatch = checkpoints, stopwatch
        if resumed is not None:
            state.put(state.live_weights(self.model), resumed.tensors(state.weights_file(self.model)))
            best.restore_state(resumed)
        trainer.go(resumed, total)
        if trainer.stop == Stop.CHECKPOINT_AND_EXIT:
            return FitResult("suspended", trainer.state.global_step, best.step)
        if trainer.stop == Stop.SAVE_AND_FINISH:
            status = "interrupted"
        else:
            status = "early_stopped" if best.patience_ended else "finished"
        best.restore_best()
        return FitResult(status, trainer.state.global_step, best.step)

    def checksums(self) -> dict[str, int]:
        return checksums(state.live_weights(self.model))

    def answer(self, prompts: list[list[int]], max_new_tokens: int, ends: Sequence[int]) -> list[list[int]]:
        """Greedy decoding, of all prompts in one left-padded batch where the family computes the same then."""
        self.module.eval()
        # Cached decoding has queries and keys of different lengths and padding on the left: transformers' own.
        with self._plain_attention(), self._autocast():
            settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": list(ends)}
            found = continuations(self.module.model, prompts, self.answering, self.tokenizer.pad_token_id, **settings)
        return [until_end(ids, ends) for ids in found]

    @cached_property
    def answering(self) -> Answering:
        """Found out when answers are asked for; of the families with facts in the configuration it is known (a test
        tries them). Raises TrntuneError where the family has no exact way."""
        if self.config.model.architecture is not None:
            return FASTEST
        model, length = self.config.model, self.config.training.max_length + self.config.tracking.sample_tokens
        return way_of_answering(self.model_dir, length, self.way.attention, model.trust_remote_code)

    def save(self, directory: Path) -> None:
        """safetensors in Hugging Face's layout: peft's for an adapter, a model directory with tokenizer for full.

        Raises NonFiniteLossError where the last update broke the weights: no loss computed with them would tell.
        """
        if bad := not_finite(state.live_weights(self.model)):
            raise NonFiniteLossError(
                f"after the last step {bad} holds numbers that are not finite, so the weights are not saved; lower "
                "training.learning_rate"
            )
        self._write(directory)

    def rehearse(self, directory: Path) -> None:
        """An adapter as it begins, of a model one number of each tensor; tied ones stay tied."""
        name, document = state.config_document(self.model)
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        durable.write_json(directory / name, document, allow_nan=True)
        self._write(directory, None if isinstance(self.model, PeftModel) else state.first_numbers(self.model))

    def _write(self, directory: Path, tensors: state.Tensors | None = None) -> None:
        # The attention function is this process's: a reader of config.json must not look for it.
        with self._plain_attention():
            state.save_weights(self.model, directory, tensors)
        self.tokenizer.save_pretrained(directory)

    def saved_bytes(self) -> tuple[int, int]:
        """Rank 0 writes for all; AdamW keeps two moments of what is trained, in its dtype."""
        if self.rank != 0:
            return 0, 0
        weights = sum(tensor.nbytes for tensor in state.live_weights(self.model).values())
        moments = sum(2 * p.nbytes for p in self.model.parameters() if p.requires_grad)
        best = 0 if self.config.training.early_stopping_patience is None else weights
        return weights, weights + moments + best

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
        """Inside, the model uses transformers' attention instead of attention by documents."""
        self.module.model.set_attn_implementation(self.way.attention)
        try:
            yield
        finally:
            self.module.model.set_attn_implementation(self.attention)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.training.precision == "bf16"):
            yield
