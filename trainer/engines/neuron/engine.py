"""The neuron engine: optimum-neuron's trainer on AWS Trainium, started by torchrun, one process a core."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import set_seed

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.neuron.graphs import fuses_qkv
from launcher.neuron.libraries import COMMAND, platform_fault
from launcher.plan.steps import total_steps, warmup_steps
from launcher.run_dir.result import RunStatus
from trainer.checkpoints.peers import Peers, SingleProcess
from trainer.checkpoints.state import Checkpoints, RestoredState
from trainer.data.collate import Collator
from trainer.engines.base import FitResult, Rows, TrainingCallback
from trainer.engines.early_stopping import BestWeights
from trainer.engines.gloo import GlooPeers
from trainer.engines.neuron import patches as neuron_patches
from trainer.engines.neuron import saved
from trainer.engines.neuron.layout import best_file, weights_file
from trainer.engines.neuron.part import Part
from trainer.engines.neuron.state import trained_weights
from trainer.engines.state import ENGINE, put
from trainer.libraries.transformers_files import save_tokenizer
from trainer.metrics.throughput import ModelSize, Stopwatch
from trainer.models.adapt import modules_of
from trainer.models.size import ParameterCounts, model_size
from trainer.models.unchanged import checksums
from trainer.probes.model import on_meta
from trainer.signals import Stop

_INSTALL = f"it comes from AWS's package index: {COMMAND} (docs/trainium.md)"


def create(config: Config) -> NeuronEngine:
    """Join the process group that torchrun made, and take the device."""
    return NeuronEngine(config)


def check_supported(config: Config) -> None:
    """Raise TrntuneError for what optimum-neuron 0.4.5 would train wrongly or not at all."""
    parallel = config.parallelism
    if config.training.precision == "fp32" and parallel.zero_1:
        raise TrntuneError(
            "parallelism.zero_1=true: with training.precision=fp32 its optimizer would run in bf16; take false"
        )


def _fingerprints(config: Config) -> dict[str, str]:
    """Of the source that must be there: copies of heads and pipeline stages matter where there are any."""
    facts = config.model.architecture
    repeats = facts is None or fuses_qkv(facts, config.parallelism)
    of_copies = neuron_patches.OF_COPIES if repeats else {}
    of_stages = neuron_patches.OF_STAGES if config.parallelism.pipeline_parallel > 1 else {}
    return {**neuron_patches.FINGERPRINTS, **of_copies, **of_stages}


class NeuronEngine:
    """See trainer.engines.base.Engine."""

    sharded = True
    gathers = False
    can_answer = False
    notes: Sequence[str] = ()

    def __init__(self, config: Config) -> None:
        self.config = config
        check_supported(config)
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            raise TrntuneError("the neuron engine must be started by torchrun, also in one process")
        if fault := platform_fault(config):
            raise TrntuneError(f"accelerator={config.accelerator.name}: {fault}")
        try:
            # optimum-neuron sets what the compiler reads when it is imported, before the process group is made.
            self.neuron_trainer = import_module("trainer.engines.neuron.trainer")
            self.neuron_model = import_module("trainer.engines.neuron.model")
            neuron_arguments = import_module("trainer.engines.neuron.arguments")
            neuron_distributed = import_module("trainer.engines.neuron.distributed")
            self.neuron_xla = import_module("torch_xla.core.xla_model")
        except ModuleNotFoundError as error:
            raise TrntuneError(f"the neuron engine needs the Python package {error.name}; {_INSTALL}") from None
        neuron_patches.check(neuron_patches.named, _fingerprints(config))
        neuron_distributed.mend()
        self.arguments = neuron_arguments.training_arguments(config)
        self.rank: int = dist.get_rank()
        self.replicas: int = config.parallelism.data_parallel
        self.part = Part(config, neuron_distributed.place(self.rank), self.peers())

    def load(self, model_dir: Path, tokenizer: Any) -> None:
        """Load this rank's part of the model, add the adapter, and put it on the device."""
        self.tokenizer, self.model_dir = tokenizer, model_dir
        collator = Collator(self.config.training.max_length, tokenizer.pad_token_id)
        set_seed(self.config.seed)
        model = self.neuron_model.load(model_dir, self.config, self.arguments.trn_config)
        self.counts = self.neuron_model.count(model, self.config, model_dir)
        expected = self.config.model.parameters
        if expected is not None and self.counts.total != expected:
            raise TrntuneError(
                f"{model_dir} has {self.counts.total:,} parameters, not {expected:,} as model.parameters says"
            )
        self.trainer = self.neuron_trainer.DocumentTrainer(self.part, collator, self.arguments, model, self._documents)
        self.seed_device()

    def seed_device(self) -> None:
        """Ranks that see different activations draw different dropout; those that see the same must draw the same."""
        alike, place = not self.config.parallelism.sequence_parallel, self.part.place
        model = place.data * self.config.parallelism.pipeline_parallel + place.pipeline
        self.neuron_xla.set_rng_state(self.config.seed + (model if alike else self.rank))

    def parameters(self) -> ParameterCounts:
        return self.counts

    def model_size(self) -> ModelSize:
        base = on_meta(self.model_dir)
        return model_size(base, self.counts, self.config, modules_of(base))

    def evaluate(self, rows: Rows) -> float:
        found: float = self.trainer.held_out_loss(rows)
        return found

    def peers(self) -> Peers:
        return SingleProcess() if dist.get_world_size() == 1 else GlooPeers(self.rank)

    def fit(
        self, rows: Rows, eval_rows: Rows, observer: TrainingCallback, checkpoints: Checkpoints, stopwatch: Stopwatch
    ) -> FitResult:
        """Train with optimum-neuron until the steps are done, evaluation stops improving, or a stop is asked for."""
        trainer, resumed = self.trainer, checkpoints.resumed
        total = total_steps(self.config, len(rows))
        trainer.rows, trainer.eval_rows = rows, eval_rows
        trainer.observer, trainer.checkpoints, trainer.stopwatch = observer, checkpoints, stopwatch
        trainer.args.max_steps, trainer.args.warmup_steps = total, warmup_steps(self.config, total)
        # Every rank has a part of its own, which is on the device once it is synced.
        file, sync = best_file(self.part.place), self.neuron_trainer.torch_xla.sync
        best = BestWeights(self.config.training, lambda: trained_weights(trainer.model), file, lambda _: sync())
        trainer.best = best
        trainer.restored, trainer.state.global_step = resumed, 0
        self.seed_device()
        if resumed is not None:
            self._take_up(resumed)
        if trainer.state.global_step < total and not best.patience_ended:
            trainer._train()  # train() only adds a cache of graphs on the Hub: ours is the file system's
        steps = trainer.state.global_step
        if trainer.stop == Stop.CHECKPOINT_AND_EXIT:
            return FitResult(RunStatus.SUSPENDED, steps, best.step)
        best.restore_best()
        finished = RunStatus.EARLY_STOPPED if best.patience_ended else RunStatus.FINISHED
        return FitResult(RunStatus.INTERRUPTED if trainer.stop == Stop.SAVE_AND_FINISH else finished, steps, best.step)

    def checksums(self) -> dict[str, int]:
        return checksums(trained_weights(self.trainer.model))

    def answer(self, prompts: list[list[int]], max_new_tokens: int, ends: Sequence[int]) -> list[list[int]]:
        raise TrntuneError(
            "the model is split for training and can't generate: use stages consolidate, merge, generate"
        )

    def save(self, directory: Path) -> None:
        """Write this rank's part of the adapter or the model, in the layout that postprocess.consolidate reads."""
        saved.write(directory, saved.weights(self.part, self.trainer.model), self._documents())
        if self.rank == 0:
            save_tokenizer(self.tokenizer, directory)

    def rehearse(self, directory: Path) -> None:
        """What this rank will say of the weights, and on rank 0 the tokenizer. The device isn't used."""
        saved.write(directory, {}, self._documents())
        if self.rank == 0:
            save_tokenizer(self.tokenizer, directory)

    def saved_bytes(self) -> tuple[int, int]:
        return saved.saved_bytes(self.part, self.trainer.model)

    def peak_memory(self) -> tuple[int, int | None]:
        """The Neuron runtime tells no peak of a core's memory."""
        host = self.part.together.all_gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return sum(host), None

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _documents(self) -> dict[str, Any]:
        """What says how this rank's weights lie, by file name."""
        return saved.documents(self.part, self.model_dir, lambda: self.neuron_model.metadata(self.trainer.model))

    def _take_up(self, resumed: RestoredState) -> None:
        """Weights and the best evaluation; the rest is put back when the optimizer is made."""
        trainer = self.trainer
        weights = resumed.tensors(weights_file(self.config.method.name, self.part.place))
        put(trained_weights(trainer.model), weights)
        trainer.best.restore_state(resumed)
        trainer.state.global_step = resumed.step
        if resumed.document(ENGINE)["evaluation_pending"]:
            trainer.evaluate_now(resumed.step)
