"""The torch engine: transformers.Trainer on a CPU or a device, one process a replica; torchrun starts several."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from launcher.architecture.adapters import Modules
from launcher.config.schema import Config, compiles_layers, is_sharded, on_torch_neuron
from launcher.errors import TrntuneError
from launcher.model_dir.config_json import read_config_json
from launcher.neuron.libraries import platform_fault
from launcher.plan.steps import total_steps
from launcher.run_dir.result import RunStatus
from trainer import device
from trainer.checkpoints import durable
from trainer.checkpoints.peers import Peers
from trainer.checkpoints.state import Checkpoints
from trainer.compilation.layers import as_written, check_compiler, compile_layers
from trainer.data.collate import Collator
from trainer.data.turn_end import ends_of, until_end
from trainer.engines.base import FitResult, NonFiniteLossError, Rows, TrainingCallback
from trainer.engines.early_stopping import BestWeights
from trainer.engines.state import Tensors, put
from trainer.engines.torch import process_group, state
from trainer.engines.torch.evaluation import held_out_loss
from trainer.engines.torch.replica import Replica
from trainer.engines.torch.sharding import in_turn, shard
from trainer.engines.torch.trainer import PackedTrainer, training_arguments
from trainer.families.answers import FASTEST, Answering, continuations
from trainer.families.choose import check_fixed_shapes, enable_checkpointing, way_of_answering, way_of_training
from trainer.families.pairs import layer_extents
from trainer.families.way import Way
from trainer.fused import fuse
from trainer.libraries.transformers_files import mend_config, save_tokenizer
from trainer.metrics.throughput import ModelSize, Stopwatch
from trainer.models.adapt import decoder_layers, modules_of
from trainer.models.attention import DOCUMENT_ATTENTION
from trainer.models.causal_lm import CausalLMLoss
from trainer.models.generation import mend_generation
from trainer.models.load import (
    apply_method,
    bytes_when_read,
    check_enough_embeddings,
    count_parameters,
    load_model,
    to_device,
)
from trainer.models.size import ParameterCounts, model_size
from trainer.models.unchanged import checksums
from trainer.signals import Stop


def create(config: Config) -> TorchEngine:
    """Join the process group, if torchrun made one, and take the device."""
    return TorchEngine(config)


def _not_spread(tensors: Tensors) -> None:
    """Each rank has kept its own part."""


class TorchEngine:
    """See trainer.engines.base.Engine."""

    sharded = False
    notes: Sequence[str] = ()
    replica: Replica
    """from ``load`` on"""
    modules: Modules
    way: Way

    def __init__(self, config: Config) -> None:
        self.config = config
        if on_torch_neuron(config) and (fault := platform_fault(config)):
            raise TrntuneError(f"accelerator={config.accelerator.name}: {fault}")
        device.check(config.accelerator.device, config.training.precision)
        self.group = process_group.join(config)
        self.rank, self.replicas = self.group.rank, self.group.replicas
        self.gathers = is_sharded(config)
        self.fixed_shapes = device.has_fixed_shapes(self.group.device.type)
        self.compiles = compiles_layers(config)
        if self.compiles:
            check_compiler(self.group.device)
        # Each token of an answer has shapes of its own, and a model in parts needs all ranks for it.
        self.can_answer = not self.gathers and not self.fixed_shapes

    def load(self, model_dir: Path, tokenizer: Any) -> None:
        """Load the model, add the adapter, and put it, or this rank's part of it, on the device."""
        self.tokenizer, self.model_dir = tokenizer, model_dir
        set_seed(self.config.seed)
        self.way = way_of_training(model_dir, self.config)
        self.attention = DOCUMENT_ATTENTION if self.way.packed is None else self.way.attention
        if not is_sharded(self.config):
            self.replica = self._loaded()
            return
        with in_turn(self.group, self.config, bytes_when_read(model_dir, self.config)) as mesh:
            self.replica = self._loaded()
            module, layers = self.replica.module, self.modules.layers
            self.replica.shards = shard(module, self.model, layers, self.config, mesh, self.group.device)

    def _loaded(self) -> Replica:
        """The whole model on the device; in host memory where it will be sharded."""
        base = load_model(self.model_dir, self.config, self.attention, self.group.device)
        if self.config.method.name == "full":  # an adapter is saved without them
            self.notes = mend_generation(base, self.model_dir, ends_of(self.tokenizer))
        check_enough_embeddings(base, self.tokenizer, self.model_dir)
        if self.fixed_shapes:
            check_fixed_shapes(base, base.config, self.model_dir)
        if self.config.training.gradient_checkpointing:
            enable_checkpointing(base)
        self.modules = modules_of(base)
        model = apply_method(base, self.config)
        if not is_sharded(self.config):
            to_device(model, self.group.device)
        if self.compiles:
            self._compile(base)
        elif self.config.parallelism.tensor_parallel == 1:  # which are DTensors' where they are cut
            fuse(model)
        ids = torch.int32 if self.fixed_shapes else torch.int64
        collator = Collator(self.config.training.max_length, self.tokenizer.pad_token_id, ids)
        module, extents = CausalLMLoss(model, self.way, self.fixed_shapes), layer_extents(base.config)
        config = read_config_json(self.model_dir)
        return Replica(self.config, self.group, model, module, collator, extents, config)

    def _compile(self, base: PreTrainedModel) -> None:
        if self.modules.layers is None:
            raise TrntuneError(
                f"training.compile=layers: {type(base).__name__} has no list of layers that could be compiled; take "
                "training.compile=none"
            )
        split = self.config.parallelism.tensor_parallel > 1
        compile_layers(decoder_layers(base, self.modules.layers), self.group.device.type, split)

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        return self.replica.model

    def parameters(self) -> ParameterCounts:
        total, trainable = count_parameters(self.model)
        here = sum(p.numel() for p in self.replica.trainable().values())
        return ParameterCounts(total, trainable, here)

    def model_size(self) -> ModelSize:
        return model_size(self.replica.module.model, self.parameters(), self.config, self.modules)

    def evaluate(self, rows: Rows) -> float:
        return held_out_loss(self.replica, rows)

    def peers(self) -> Peers:
        return self.group.peers()

    def fit(
        self, rows: Rows, eval_rows: Rows, observer: TrainingCallback, checkpoints: Checkpoints, stopwatch: Stopwatch
    ) -> FitResult:
        """Train with transformers.Trainer until the steps are done, evaluation stops improving, or a stop is asked."""
        replica, total = self.replica, total_steps(self.config, len(rows))
        resumed = None if checkpoints.resumed is None else replica.regrouped(checkpoints.resumed)
        if replica.shards is None:
            # All replicas have the same weights.
            file, spread = state.BEST if self.rank == 0 else None, self.group.spread
        else:
            file, spread = state.BEST, _not_spread
        best = BestWeights(self.config.training, replica.trainable, file, spread)
        arguments = training_arguments(self.config, total, self.group.replica)
        trainer = PackedTrainer(replica, arguments, rows, eval_rows, observer, checkpoints, stopwatch, best)
        if resumed is not None:
            put(self.replica.weights(), resumed.tensors(state.weights_file(self.model)))
            best.restore_state(resumed)
        trainer.train_from(resumed, total)
        steps, stop = trainer.state.global_step, trainer.step.stop
        if stop == Stop.CHECKPOINT_AND_EXIT:
            return FitResult(RunStatus.SUSPENDED, steps, best.step)
        best.restore_best()
        finished = RunStatus.EARLY_STOPPED if best.patience_ended else RunStatus.FINISHED
        return FitResult(RunStatus.INTERRUPTED if stop == Stop.SAVE_AND_FINISH else finished, steps, best.step)

    def checksums(self) -> dict[str, int]:
        return checksums(self.replica.weights())

    def answer(self, prompts: list[list[int]], max_new_tokens: int, ends: Sequence[int]) -> list[list[int]]:
        """Greedy decoding, of all prompts in one left-padded batch where the family computes the same then."""
        self.replica.module.eval()
        # Cached decoding has queries and keys of different lengths and padding on the left: transformers' own.
        with self._plain_attention(), self.replica.autocast(), self._eager():
            settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": list(ends)}
            found = continuations(
                self.replica.module.model, prompts, self.answering, self.tokenizer.pad_token_id, **settings
            )
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
        if bad := self.replica.not_finite():
            raise NonFiniteLossError(
                f"after the last step {bad} holds numbers that are not finite, so the weights are not saved; lower "
                "training.learning_rate"
            )
        self._write_trained(directory)

    def rehearse(self, directory: Path) -> None:
        """An adapter as it begins, of a model one number of each tensor; tied ones stay tied."""
        shards = self.replica.shards
        if self.rank == 0:
            name, document = state.config_document(self.model, self.replica.base_config)
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            durable.write_json(directory / name, document, allow_nan=True)
        if isinstance(self.model, PeftModel):
            self._write_trained(directory)
        elif self.rank == 0:
            tensors = state.first_numbers(self._tensors()) if shards is None else shards.first_numbers()
            self._write(directory, lambda: self._save_weights(directory, tensors))

    def _tensors(self) -> Tensors:
        return state.host_copies(self.model) if self.fixed_shapes else self.model.state_dict()

    def _save_weights(self, directory: Path, tensors: Tensors | None = None) -> None:
        state.save_weights(self.model, directory, tensors, from_host=self.fixed_shapes)

    def _write_trained(self, directory: Path) -> None:
        """Of a model in parts all ranks call it, and rank 0 writes."""
        shards = self.replica.shards
        if shards is None:
            self._write(directory, lambda: self._save_weights(directory))
            return
        found = shards.gathered(keep=self.rank == 0)
        if self.rank == 0:
            self._write(directory, lambda: shards.write(directory, found))

    def _write(self, directory: Path, weights: Callable[[], None]) -> None:
        # The attention function is this process's: a reader of config.json must not look for it.
        with self._plain_attention():
            weights()
        if not isinstance(self.model, PeftModel):
            mend_config(directory, self.replica.base_config)
        save_tokenizer(self.tokenizer, directory)

    def saved_bytes(self) -> tuple[int, int]:
        """Rank 0 writes for all, but into a checkpoint of a model in parts each rank its own; AdamW keeps two moments
        of what is trained, in its dtype."""
        shards = self.replica.shards
        if self.rank != 0 and shards is None:
            return 0, 0
        weights = sum(tensor.nbytes for tensor in self.replica.weights().values())
        moments = sum(2 * p.nbytes for p in self.replica.trainable().values())
        best = 0 if self.config.training.early_stopping_patience is None else weights
        final = weights if shards is None else shards.whole_bytes() if self.rank == 0 else 0
        return final, weights + moments + best

    def peak_memory(self) -> tuple[int, int | None]:
        host = self._reduced(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, dist.ReduceOp.SUM)
        peak = device.peak_memory(self.group.device)
        return host, None if peak is None else self._reduced(peak, dist.ReduceOp.MAX)

    def _reduced(self, value: int, op: Any) -> int:
        """``value`` of all replicas."""
        return int(self.group.all_reduce(torch.tensor(float(value), dtype=torch.float64).to(self.group.counts), op))

    def close(self) -> None:
        process_group.leave()

    def _eager(self) -> AbstractContextManager[None]:
        """Inside, each call's shapes may differ."""
        return as_written() if self.compiles else nullcontext()

    @contextmanager
    def _plain_attention(self) -> Iterator[None]:
        """Inside, the model uses transformers' attention instead of attention by documents."""
        self.replica.module.model.set_attn_implementation(self.way.attention)
        try:
            yield
        finally:
            self.replica.module.model.set_attn_implementation(self.attention)
