"""Time of an optimizer step: matrix products at the rate of the hardware, traffic of activations, and the update.

    seconds = FLOPs / (rate x compute_efficiency) x bubble + (activation_traffic x activations + update) / bandwidth

bubble is (m + p - 1) / m for p pipeline stages and m micro batches (1F1B).

The constants lie in conf/accelerator (calibration), each with the runs that they were fitted to. Rate and bandwidth
are the accelerator's, or for this machine's CPU or GPU what trainer.probes.device measures at the moment of planning.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from launcher.architecture.parameters import Parameters
from launcher.architecture.tensors import linear_layers
from launcher.config.schema import (
    ArchitectureConfig,
    CalibrationConfig,
    Config,
    accumulation_steps,
    is_sharded,
    world_size,
)
from launcher.jobs.executor import is_submitted
from launcher.jobs.helper_process import ask
from launcher.plan.activations import kept_by_layer, reached_layers
from launcher.plan.schedule import Epoch


@dataclass(frozen=True)
class Rates:
    """What all devices of the run do together."""

    flops_per_second: float
    bytes_per_second: float
    source: str


@dataclass(frozen=True)
class StepCost:
    """An optimizer step, all replicas."""

    flops: float
    """of the hardware: padding and recomputation count"""
    model_flops: float
    """that the real tokens need, by docs/measurement.md"""
    kept_bytes: float
    """activations that the backward pass reads"""
    updated: float
    """trainable parameters that the devices update, copies counted"""
    bubble: float
    """by how much a pipeline's filling and draining lengthens a step"""


@dataclass(frozen=True)
class Duration:
    """Seconds of an optimizer step, and what part of the peak the model's own FLOPs then are."""

    step_seconds: float
    low: float
    high: float
    mfu: float | None
    rates: Rates
    source: str


def rates(config: Config, facts: ArchitectureConfig) -> Rates | None:
    """The accelerator's figures, or this machine's: None for an accelerator without figures that is not here."""
    accelerator = config.accelerator
    if accelerator.peak_tflops is not None and accelerator.memory_gbps is not None:
        devices = world_size(config)
        return Rates(
            accelerator.peak_tflops * 1e12 * devices,
            accelerator.memory_gbps * 1e9 * devices,
            f"conf/accelerator: {accelerator.peak_tflops:g} TFLOP/s and {accelerator.memory_gbps:g} GB/s a device",
        )
    elsewhere = accelerator.device == "neuron" or is_submitted(config.cluster)
    return None if elsewhere else probed(config, facts)


def probed(config: Config, facts: ArchitectureConfig) -> Rates | None:
    """This machine's rates for this model's layers; None without the device, or when the probe fails, which is told."""
    shapes = [[linear.outputs, linear.inputs] for linear in linear_layers(facts)]
    tokens = config.training.micro_batch_size * config.training.max_length
    accelerator = config.accelerator
    request = {"shapes": shapes, "tokens": tokens, "device": accelerator.device, "precision": config.training.precision}
    found = ask("trainer.probes.device", json.dumps(request), "the plan has no time")
    if not found:
        return None
    # Replicas on a CPU share the machine that the probe had for itself; on GPUs each has its own.
    devices = 1 if accelerator.device == "cpu" else world_size(config)
    flops, bandwidth = found["flops_per_second"], found["bytes_per_second"]
    source = f"measured now: {flops / 1e9:.0f} GFLOP/s in this model's matrix products, {bandwidth / 1e9:.1f} GB/s"
    return Rates(flops * devices, bandwidth * devices, source)


def work(config: Config, facts: ArchitectureConfig, parameters: Parameters, data: Epoch) -> StepCost:
    """What an average step computes."""
    steps = data.rows / config.training.global_batch_size
    positions = config.training.global_batch_size * config.training.max_length
    full = config.method.name == "full"
    head = facts.vocab_size * facts.hidden_size
    products = sum(linear.outputs * linear.inputs for linear in linear_layers(facts)) * facts.layers
    if config.model.architecture is None:  # the model's own modules: those of a Llama are others
        products = parameters.matmul - head
    width = facts.layers * facts.heads * facts.head_dim
    neuron = config.accelerator.engine == "neuron"
    # Where every shape is compiled, logits and attention are computed everywhere; else where labels count, and inside
    # documents.
    everywhere = config.accelerator.device == "neuron"
    labels = positions if everywhere else data.trained / steps
    pairs = positions * (config.training.max_length + 1) / 2 if everywhere else data.pairs / steps
    passes = 6 if full else 4
    reached = reached_layers(config, facts)
    share = reached / facts.layers  # of the layers: the others compute forward alone
    recomputed = 2 * products * share * positions if config.training.gradient_checkpointing and not neuron else 0
    extra = 6 * parameters.low_rank + 2 * parameters.saved_matmul
    attention = (12 * share + 4 * (1 - share)) * width
    flops = ((passes - 2 * (1 - share)) * products + extra) * positions + passes * head * labels + attention * pairs
    real = (passes * parameters.matmul - 2 * parameters.forward_only + extra) * data.tokens / steps
    real += attention * data.pairs / steps
    sharing = config.parallelism.data_parallel if is_sharded(config) else 1
    return StepCost(
        flops=flops + recomputed,
        model_flops=real,
        kept_bytes=kept_by_layer(config, facts).total * reached * positions,
        updated=parameters.trainable_local[parameters.fullest] * world_size(config) / sharing,
        bubble=1 + (config.parallelism.pipeline_parallel - 1) / accumulation_steps(config),
    )


def seconds(step: StepCost, rates: Rates, calibration: CalibrationConfig, method: str) -> float:
    """The formula at the top."""
    traffic: float = getattr(calibration, f"activation_traffic_{method}")
    moved = traffic * step.kept_bytes + calibration.update_bytes * step.updated
    products = step.flops / (rates.flops_per_second * calibration.compute_efficiency) * step.bubble
    return products + moved / rates.bytes_per_second


def estimate(config: Config, facts: ArchitectureConfig, parameters: Parameters, data: Epoch) -> Duration | None:
    """The step's time with its range; None without a calibration or rates."""
    calibration = config.accelerator.calibration
    found = rates(config, facts) if calibration else None
    if calibration is None or found is None:
        return None
    step = work(config, facts, parameters, data)
    middle = seconds(step, found, calibration, config.method.name)
    peak = config.accelerator.peak_tflops
    mfu = None if peak is None else step.model_flops / (middle * peak * 1e12 * world_size(config))
    return Duration(middle, middle * calibration.low, middle * calibration.high, mfu, found, calibration.source)
