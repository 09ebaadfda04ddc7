"""Bytes that one process of the training stage needs at its peak, by what, against what its device has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.architecture.adapters import saved_modules
from launcher.architecture.family_table import FAMILIES, HEAD
from launcher.architecture.parameters import Parameters
from launcher.architecture.quantized import BYTES_PER_WEIGHT
from launcher.architecture.tensors import adapted_layers, linear_layers, modules
from launcher.config.schema import ArchitectureConfig, Config, accumulation_steps, is_sharded, offloads, world_size
from launcher.jobs.executor import is_submitted
from launcher.jobs.job import processes_per_node
from launcher.plan import sharded
from launcher.plan.activations import PRODUCT_BYTES, kept_by_layer, layer_input, reached_layers
from launcher.run_dir.provenance import torch_is_built_for_cuda

GIB = 2**30
LOSS_CHUNK = 256  # positions whose logits exist at a time: trainer.models.loss.CHUNK, compared by a test

# Measured on runs of three sizes, both methods and 512 to 1,024 tokens (docs/planning.md): resident memory of the
# process before it holds a model, and what temporaries and a fragmented heap add to the activations.
HOST_PROCESS = 480e6
HOST_MLFLOW = 100e6
# What importing torch's build for CUDA takes more than its build for CPUs: 2.13, Python 3.13.
HOST_CUDA_BUILD = 364e6
HOST_OVERHEAD = {"full": 1.4, "lora": 1.6}
# Not measured here: a CUDA context with its libraries, the Neuron runtime with its program and its buffers.
DEVICE_RUNTIME = {"cuda": 0.8e9, "neuron": 1.0e9}
DEVICE_OVERHEAD = 1.2


@dataclass(frozen=True)
class Memory:
    """Peak of the fullest process, bytes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    runtime: float
    """the process itself, its libraries, the accelerator's runtime"""
    checkpoint: float
    """the copy that a checkpoint is written from, beside the training; on an accelerator it is in the host's memory"""
    available: float
    """memory of the device, or this process's share of the machine"""
    whole: float = 0.0
    """at another time, instead of all but the runtime: a model in parts while it is read or saved, on a CPU"""
    host: float = 0.0
    """host memory, where parts of a model lie there and not on the device (cpu_offload)"""
    host_available: float | None = None
    """this process's share of its machine's memory, where ``host`` is looked at and that is known"""

    @property
    def total(self) -> float:
        state = self.weights + self.gradients + self.optimizer
        return max(state + self.activations + self.loss + self.checkpoint, self.whole) + self.runtime

    @property
    def fits(self) -> bool:
        return self.total <= self.available

    @property
    def largest(self) -> str:
        """What needs most, in words."""
        parts = ("weights", "gradients", "optimizer", "activations", "loss", "runtime", "checkpoint", "whole")
        name = max(parts, key=lambda part: getattr(self, part))
        whole = "the whole model while it is read or saved"
        words = {
            "whole": whole,
            "optimizer": "the optimizer state",
            "checkpoint": "the copy that a checkpoint is written from",
        }
        return {**words, "loss": "the loss", "runtime": "the runtime"}.get(name, name)


def estimate(config: Config, facts: ArchitectureConfig, parameters: Parameters, machine_bytes: float) -> Memory:
    """The peak of a training step on the fullest rank. ``machine_bytes`` is the memory of this machine."""
    neuron = config.accelerator.engine == "neuron"
    stage = parameters.fullest
    held, trained = parameters.local[stage], parameters.trainable_local[stage]
    if is_sharded(config):
        weights, gradients, optimizer = sharded.state(config, facts, held, trained)
    else:
        weights, gradients, optimizer = (_neuron_state if neuron else _torch_state)(config, held, trained)
    if parameters.packed:
        weights += _packed(config, facts, parameters.packed)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=_activations(config, facts) * _overhead(config),
        loss=_neuron_loss(config, facts) if neuron else _torch_loss(config, facts),
        runtime=_runtime(config),
        checkpoint=_checkpoint(config, trained),
        available=available(config, machine_bytes),
        whole=sharded.whole(config, parameters) if _in_parts_here(config) else 0.0,
        host=_host(config, facts, parameters) if offloads(config) else 0.0,
        host_available=_share_of_host(config, machine_bytes) if offloads(config) else None,
    )


def _in_parts_here(config: Config) -> bool:
    """Whether a model in parts is in the memory that it is read into."""
    return is_sharded(config) and config.accelerator.device == "cpu"


def available(config: Config, machine_bytes: float) -> float:
    """Memory of a process's device; on a CPU all processes share the machine. Of a cluster's nodes only what is asked
    for is known: this machine is none of them."""
    if config.accelerator.memory_gib is not None:
        return config.accelerator.memory_gib * GIB
    share = _share_of_host(config, machine_bytes) if config.accelerator.device == "cpu" else None
    return math.inf if share is None else share


def _share_of_host(config: Config, machine_bytes: float) -> float | None:
    """A process's of the memory of its machine; None where that is not known."""
    if not is_submitted(config.cluster):
        return machine_bytes / world_size(config)
    return None if config.cluster.memory_gb is None else config.cluster.memory_gb * 1e9 / processes_per_node(config)


def _host(config: Config, facts: ArchitectureConfig, parameters: Parameters) -> float:
    """Host memory of the process that holds most with cpu_offload: the parts of its model and what a checkpoint is
    written from, or, at the end, what was trained whole; or the whole model, before it keeps its part."""
    share = parameters.trainable / config.parallelism.data_parallel
    parts = sharded.in_host_memory(config, facts, parameters)
    kept = max(_copies(config, share), 4.0 * parameters.trainable)
    return _process(config) + max(parts + kept, sharded.whole(config, parameters))


def _torch_state(config: Config, held: int, trained: int) -> tuple[float, float, float]:
    """Trained weights, their gradients and AdamW's two moments are fp32; a frozen base is bf16 under bf16. Autocast
    keeps a bf16 copy of trained weights, DistributedDataParallel a copy of the gradients in its buckets."""
    bf16 = config.training.precision == "bf16"
    frozen = held - trained
    weights = frozen * (2 if bf16 else 4) + trained * (6 if bf16 else 4)
    buckets = 2 if config.parallelism.data_parallel > 1 else 1
    return weights, 4.0 * trained * buckets, 8.0 * trained


def _packed(config: Config, facts: ArchitectureConfig, count: int) -> float:
    """What packing ``count`` weights changes: a layer's weight is unpacked while it is multiplied."""
    width = PRODUCT_BYTES[config.training.precision]
    unpacked = max(linear.outputs * linear.inputs for linear in linear_layers(facts))
    return width * unpacked - count * (width - BYTES_PER_WEIGHT)


def _neuron_state(config: Config, held: int, trained: int) -> tuple[float, float, float]:
    """optimum-neuron under bf16: bf16 weights, fp32 gradient accumulators, fp32 master weights and two moments, the
    last three split over the replicas by ZeRO-1."""
    bf16 = config.training.precision == "bf16"
    share = config.parallelism.data_parallel if config.parallelism.zero_1 else 1
    return held * (2.0 if bf16 else 4.0), 4.0 * trained, (12.0 if bf16 else 8.0) * trained / share


def _activations(config: Config, facts: ArchitectureConfig) -> float:
    """Bytes of one micro batch, or of as many as a pipeline has in flight."""
    parallel, training = config.parallelism, config.training
    tokens = training.micro_batch_size * training.max_length
    layers = math.ceil(reached_layers(config, facts) / parallel.pipeline_parallel)
    anew = config.accelerator.engine == "neuron"
    whole = kept_by_layer(config, facts).on_rank(parallel, anew)
    if training.gradient_checkpointing:
        kept = layer_input(facts).on_rank(parallel, anew) * layers + whole
    else:
        kept = whole * layers
    ends = 3 * 4 * facts.hidden_size / (parallel.tensor_parallel if parallel.sequence_parallel else 1)
    in_flight = min(parallel.pipeline_parallel, accumulation_steps(config))
    return tokens * (kept * in_flight + ends) + _dora_constants(config, facts)


def _dora_constants(config: Config, facts: ArchitectureConfig) -> float:
    """peft's DoRA passes an identity matrix [inputs, inputs] through each adapter to get the product of A and B."""
    if config.method.name != "lora" or not config.lora.use_dora:
        return 0.0
    width = PRODUCT_BYTES[config.training.precision]
    adapted = adapted_layers(facts, config.lora)
    products = sum(each.linear.inputs * (each.linear.inputs + each.r) for each in adapted)
    return width * products / config.parallelism.pipeline_parallel


def _overhead(config: Config) -> float:
    return HOST_OVERHEAD[config.method.name] if config.accelerator.device == "cpu" else DEVICE_OVERHEAD


def _torch_loss(config: Config, facts: ArchitectureConfig) -> float:
    """Two chunks of fp32 logits; when the head is trained also its gradient, in full training twice while a chunk is
    added; and what trained rows of the embedding take."""
    rows = facts.vocab_size / config.parallelism.tensor_parallel
    logits = 2 * 4 * LOSS_CHUNK * rows
    full = config.method.name == "full"
    gradients = 2 if full else int(HEAD in saved_modules(config.lora, modules(facts)))
    return float(logits + gradients * 4 * rows * facts.hidden_size + _rows(config, facts))


def _rows(config: Config, facts: ArchitectureConfig) -> float:
    """The embedding's gradient is a whole matrix although few rows are trained; a tied head is a copy of the embedding
    with those rows [peft's tuners/trainable_tokens/layer.py]. Measured: docs/planning.md."""
    if config.method.name == "full" or not config.lora.trainable_token_indices:
        return 0.0
    copy = PRODUCT_BYTES[config.training.precision] if facts.tied_embeddings else 0
    return float((4 + copy) * facts.vocab_size * facts.hidden_size)


def _neuron_loss(config: Config, facts: ArchitectureConfig) -> float:
    """Logits of every position of a micro batch in bf16, and in fp32 with their gradient."""
    tokens = config.training.micro_batch_size * config.training.max_length
    parts = 1 if FAMILIES[facts.family].whole_ends else config.parallelism.tensor_parallel
    return tokens * facts.vocab_size / parts * (2 + 4 + 4)


def _checkpoint(config: Config, trained: int) -> float:
    """Weights and two moments, fp32, while a checkpoint is written; and the weights that early stopping keeps."""
    if config.accelerator.device != "cpu":
        return 0.0
    return _copies(config, trained / (config.parallelism.data_parallel if is_sharded(config) else 1))


def _copies(config: Config, share: float) -> float:
    """The same in host memory, of the ``share`` of what is trained that a process holds."""
    training = config.training
    kept = 0.0 if training.early_stopping_patience is None else 4.0 * share
    return kept + (0.0 if training.save_every is None else 12.0 * share)


def _runtime(config: Config) -> float:
    return _process(config) if config.accelerator.device == "cpu" else DEVICE_RUNTIME[config.accelerator.device]


def _process(config: Config) -> float:
    """Host memory of a process before it holds a model."""
    build = HOST_CUDA_BUILD if config.accelerator.device == "cuda" or torch_is_built_for_cuda() else 0
    return HOST_PROCESS + build + (HOST_MLFLOW if config.tracking.enabled else 0)
