"""The neuron engine: optimum-neuron's trainer on AWS Trainium, started by torchrun, one process a core."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import set_seed

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.plan.steps import total_steps, warmup_steps
from trainer.checkpoints import durable
from trainer.checkpoints.peers import Peers, SingleProcess
from trainer.compilation.trial import tracing
from trainer.data.collate import Collator
from trainer.engines.base import (
    Checkpoints,
    EngineState,
    FitResult,
    ParameterCounts,
    RestoredState,
    Rows,
    TrainingCallback,
    model_size,
)
from trainer.engines.gloo import GlooPeers
from trainer.engines.neuron import patches as neuron_patches
from trainer.engines.neuron import state as neuron_state
from trainer.engines.neuron.adapter import config_document
from trainer.engines.neuron.batch import filled, host_batch
from trainer.engines.neuron.layout import best_file, metadata_file, optimizer_file, rank_of, weights_file
from trainer.engines.torch import state
from trainer.metrics.throughput import Counts, ModelSize, Stopwatch
from trainer.models.adapt import modules_of
from trainer.models.unchanged import checksums
from trainer.probes.model import on_meta
from trainer.signals import BestEvaluation, Stop

_INSTALL = "see docs/trainium.md for what an instance needs"


def create(config: Config) -> NeuronEngine:
    """Join the process group that torchrun made, and take the device."""
    return NeuronEngine(config)


def refuse_unsupported(config: Config) -> None:
    """Raise TrntuneError for what optimum-neuron 0.4.5 would train wrongly or not at all."""
    parallel = config.parallelism
    if parallel.pipeline_parallel > 1:
        raise TrntuneError(
            f"parallelism.pipeline_parallel={parallel.pipeline_parallel}: optimum-neuron's pipeline takes no position "
            "ids and averages the loss of each micro batch, so that labels would not count alike; take 1"
        )
    if config.training.precision == "fp32" and parallel.zero_1:
        raise TrntuneError(
            "parallelism.zero_1=true: with training.precision=fp32 its optimizer would run in bf16; take false"
        )


class NeuronEngine:
    """See trainer.engines.base.Engine."""

    sharded = True
    can_answer = False
    notes: Sequence[str] = ()

    def __init__(self, config: Config) -> None:
        self.config = config
        refuse_unsupported(config)
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            raise TrntuneError("the neuron engine must be started by torchrun, also in one process")
        try:
            # optimum-neuron sets what the compiler reads when it is imported, before the process group is made.
            self.neuron_trainer = import_module("trainer.engines.neuron.trainer")
            self.neuron_model = import_module("trainer.engines.neuron.model")
        except ModuleNotFoundError as error:
            raise TrntuneError(f"the neuron engine needs the Python package {error.name}; {_INSTALL}") from None
        neuron_patches.check(neuron_patches.named)
        self.arguments = self.neuron_trainer.training_arguments(config)
        parallel = config.parallelism
        self.rank: int = dist.get_rank()
        self.replicas: int = parallel.data_parallel
        self.place = rank_of(self.rank, parallel.tensor_parallel, parallel.pipeline_parallel)
        self.dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
        self.together: Peers = self.peers()
        self.optimizer_file = optimizer_file(self.place, parallel.zero_1)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def load(self, model_dir: Path, tokenizer: Any) -> None:
        """Load this rank's part of the model, add the adapter, and put it on the device."""
        self.tokenizer, self.model_dir = tokenizer, model_dir
        self.collator = Collator(self.config.training.max_length, tokenizer.pad_token_id)
        set_seed(self.config.seed)
        model = self.neuron_model.load(model_dir, self.config, self.arguments.trn_config)
        self.counts = self.neuron_model.count(model, self.config, model_dir)
        expected = self.config.model.parameters
        if expected is not None and self.counts.total != expected:
            raise TrntuneError(
                f"{model_dir} has {self.counts.total:,} parameters, not {expected:,} as model.parameters says"
            )
        self.trainer = self.neuron_trainer.DocumentTrainer(self, self.arguments, model)
        self.seed_device()

    def seed_device(self) -> None:
        """Ranks that see different activations draw different dropout; those that see the same must draw the same."""
        alike = not self.config.parallelism.sequence_parallel
        self.neuron_trainer.xm.set_rng_state(self.config.seed + (self.place.data if alike else self.rank))

    def parameters(self) -> ParameterCounts:
        return self.counts

    def model_size(self) -> ModelSize:
        base = on_meta(self.model_dir)
        return model_size(base, self.counts, self.config, modules_of(base))

    def evaluate(self, rows: Rows) -> float:
        """Every replica takes its share, in batches of the shape of training; all do equally many."""
        size, trainer = self.config.training.micro_batch_size, self.trainer
        share = rows[self.place.data :: self.replicas]
        batches = math.ceil(math.ceil(len(rows) / self.replicas) / size)
        trainer.model.eval()
        losses, trained = [], 0
        with torch.no_grad():
            for number in range(batches):
                batch = self.collator(filled(share[number * size : (number + 1) * size], size))
                inputs = host_batch(batch, self.config.dataset.packing)
                losses.append(trainer.loss_sum({name: t.to(trainer.args.device) for name, t in inputs.items()}))
                trained += int(batch["num_trained"])
                self.neuron_trainer.torch_xla.sync()
        trainer.model.train()
        total, labels = self._summed([sum(float(loss) for loss in losses), float(trained)])
        if not math.isfinite(total / labels) and not tracing():
            raise TrntuneError(
                f"the held-out loss is {total / labels}: the weights are broken; lower the learning rate"
            )
        return total / labels

    def total_steps(self, rows: int) -> int:
        return total_steps(self.config, rows)

    def peers(self) -> Peers:
        return SingleProcess() if dist.get_world_size() == 1 else GlooPeers(self.rank)

    def fit(
        self, rows: Rows, eval_rows: Rows, observer: TrainingCallback, checkpoints: Checkpoints, stopwatch: Stopwatch
    ) -> FitResult:
        """Train with optimum-neuron until the steps are done, evaluation stops improving, or a stop is asked for."""
        trainer, resumed, training = self.trainer, checkpoints.resumed, self.config.training
        total = total_steps(self.config, len(rows))
        trainer.rows, trainer.eval_rows = rows, eval_rows
        trainer.observer, trainer.checkpoints, trainer.stopwatch = observer, checkpoints, stopwatch
        trainer.args.max_steps, trainer.args.warmup_steps = total, warmup_steps(self.config, total)
        self.best = BestEvaluation(training.early_stopping_patience, training.early_stopping_min_delta)
        self.best_weights: state.Tensors = {}
        trainer.restored, trainer.state.global_step = resumed, 0
        self.seed_device()
        if resumed is not None:
            self._take_up(resumed)
        if trainer.state.global_step < total and not self.best.ended:
            trainer._train()  # train() only adds a cache of graphs on the Hub: ours is the file system's
        steps = trainer.state.global_step
        if trainer.stop == Stop.CHECKPOINT_AND_EXIT:
            return FitResult("suspended", steps, self.best.step)
        self._put_back_best()
        finished = "early_stopped" if self.best.ended else "finished"
        return FitResult("interrupted" if trainer.stop == Stop.SAVE_AND_FINISH else finished, steps, self.best.step)

    def checksums(self) -> dict[str, int]:
        return checksums(neuron_state.trained_weights(self.trainer.model))

    def answer(self, prompts: list[list[int]], max_new_tokens: int, ends: Sequence[int]) -> list[list[int]]:
        raise TrntuneError(
            "the model is split for training and can't generate: use stages consolidate, merge, generate"
        )

    def save(self, directory: Path) -> None:
        """Write this rank's part of the adapter or the model, in the layout that postprocess.consolidate reads."""
        tensors, documents = self._weights()
        for name in (*tensors, *documents):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
        for name, content in tensors.items():
            durable.write_tensors(directory / name, content)
        for name, document in documents.items():
            durable.write_json(directory / name, document)
        if self.rank == 0:
            self.tokenizer.save_pretrained(directory)

    def rehearse(self, directory: Path) -> None:
        """What this rank will say of the weights, and on rank 0 the tokenizer. The device isn't used."""
        for name, document in self._documents().items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            durable.write_json(directory / name, document)
        if self.rank == 0:
            self.tokenizer.save_pretrained(directory)

    def saved_bytes(self) -> tuple[int, int]:
        """Replicas share one file of the weights; under ZeRO-1 each writes its part of the optimizer's state."""
        trained, parallel = neuron_state.trained_weights(self.trainer.model).values(), self.config.parallelism
        first = self.place.holds_first_copy
        weights = sum(tensor.nbytes for tensor in trained) if first else 0
        # Two fp32 moments, and under bf16 fp32 master weights.
        state_bytes = (12 if self.dtype == torch.bfloat16 else 8) * sum(tensor.numel() for tensor in trained)
        own = state_bytes // self.replicas if parallel.zero_1 else state_bytes * first
        best = 0 if self.config.training.early_stopping_patience is None else weights
        return weights, weights + own + best

    def peak_memory(self) -> tuple[int, int | None]:
        """The Neuron runtime tells no peak of a core's memory."""
        host = self.together.all_gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return sum(host), None

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    # What the trainer asks.

    def agree(self, counts: Counts, wish: Stop) -> tuple[Counts, Stop]:
        """The counts of all replicas, and the strongest wish of all ranks."""
        answers: list[tuple[list[float], int]] = self.together.all_gather((counts.as_list(), int(wish)))
        first_of_replicas = answers[:: len(answers) // self.replicas]
        summed = sum((Counts.from_list(values) for values, _ in first_of_replicas), Counts())
        return summed, Stop(max(wish for _, wish in answers))

    def note_shapes(self, inputs: dict[str, torch.Tensor]) -> None:
        """Raise TrntuneError when a batch has another shape than those before: the compiler would begin again."""
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            raise TrntuneError(
                f"a batch has shapes {shapes}, those before had {self.shapes}: this is a fault of trntune"
            )

    def between_steps(self, step: int) -> bool:
        """Evaluate and save where it is due. True when training must end."""
        trainer, every = self.trainer, self.config.training.eval_every
        if every is not None and step % every == 0:
            # There may be no time for it: it is made up for when the run goes on.
            trainer.evaluation_pending = trainer.stop == Stop.CHECKPOINT_AND_EXIT
            if not trainer.evaluation_pending:
                self._evaluate_now(step)
        last = step >= trainer.args.max_steps or self.best.ended
        if trainer.checkpoints.due(step, last) or (trainer.stop != Stop.NO and step > trainer.checkpoints.saved_step):
            self.save_state(trainer.capture_rng())
        return trainer.stop != Stop.NO or self.best.ended

    def save_state(self, generators: dict[str, torch.Tensor]) -> None:
        """Copy this rank's state to host memory and hand it over; training goes on as soon as that is done."""
        start = time.perf_counter()
        with self.trainer.stopwatch.part("save"):
            captured = self._captured(generators)
            self.trainer.checkpoints.stalled(time.perf_counter() - start)
            self.trainer.checkpoints.save(captured)

    def _evaluate_now(self, step: int) -> None:
        with self.trainer.stopwatch.part("eval"):
            loss = self.evaluate(self.trainer.eval_rows)
        self.trainer.observer.on_evaluation(step, loss)
        if self.best.look(step, loss):
            self.best_weights = state.copied(neuron_state.trained_weights(self.trainer.model))

    def _captured(self, generators: dict[str, torch.Tensor]) -> EngineState:
        trainer, place = self.trainer, self.place
        tensors: dict[str, state.Tensors] = {state.rng_file(self.rank): generators}
        documents: dict[str, Any] = {}
        if place.holds_first_copy:
            tensors, documents = self._weights(tensors)
            if self.best_weights:
                tensors[best_file(place)] = self.best_weights
        if place.holds_first_copy or self.config.parallelism.zero_1:
            moments = neuron_state.optimizer_tensors(trainer.inner_optimizer, trainer.model)
            tensors[self.optimizer_file] = state.copied(moments)
        if self.rank == 0:
            documents[state.ENGINE] = {
                "engine": "neuron",
                "best": self.best.state(),
                "evaluation_pending": trainer.evaluation_pending,
            }
        return EngineState(trainer.state.global_step, float(trainer.state.epoch or 0.0), tensors, documents)

    def _weights(
        self, tensors: dict[str, state.Tensors] | None = None
    ) -> tuple[dict[str, state.Tensors], dict[str, Any]]:
        """This rank's file of weights, and what says how they lie; nothing on replicas of another rank's."""
        tensors = dict(tensors or {})
        if self.place.holds_first_copy:
            file = weights_file(self.config.method.name, self.place)
            tensors[file] = state.copied(neuron_state.trained_weights(self.trainer.model))
        return tensors, self._documents()

    def _documents(self) -> dict[str, Any]:
        """What says how this rank's weights lie, by file name."""
        documents: dict[str, Any] = {}
        if self.place.holds_first_copy and self.place.tensor == 0:
            file = metadata_file(self.config.method.name, self.place)
            documents[file] = self.neuron_model.metadata(self.trainer.model)
        if self.rank == 0:
            name, document = config_document(self.model_dir, self.config)
            documents[name] = document
        return documents

    def _take_up(self, resumed: RestoredState) -> None:
        """Weights and the best evaluation; the rest is put back when the optimizer is made."""
        trainer, kept = self.trainer, resumed.document(state.ENGINE)
        weights = resumed.tensors(weights_file(self.config.method.name, self.place))
        state.put(neuron_state.trained_weights(trainer.model), weights)
        if kept["best"] is not None and self.best.patience is not None:
            self.best.restore(kept["best"])
            self.best_weights = resumed.tensors(best_file(self.place))
        trainer.state.global_step = resumed.step
        if kept["evaluation_pending"]:
            self._evaluate_now(resumed.step)

    def _put_back_best(self) -> None:
        if self.best_weights:
            state.put(neuron_state.trained_weights(self.trainer.model), self.best_weights)
            self.neuron_trainer.torch_xla.sync()

    def _summed(self, values: list[float]) -> list[float]:
        """``values`` summed over the replicas, the same on every rank."""
        answers: list[list[float]] = self.together.all_gather(values)
        return [sum(column) for column in zip(*answers[:: len(answers) // self.replicas], strict=True)]
