"""The result of the training stage."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from launcher.config.schema import Config, world_size
from launcher.jobs.job import instances
from launcher.run_dir.attempts import Attempt
from launcher.run_dir.provenance import LIBRARIES, installed_packages
from launcher.run_dir.result import TrainResult
from trainer.checkpoints.checkpointer import SaveReport
from trainer.data.prepare import DataReport
from trainer.engines.base import Engine, FitResult
from trainer.metrics.recorder import Recorder
from trainer.metrics.throughput import DEFINITIONS_VERSION, Stopwatch, summarize, utilization

# Parts of the wall time. An engine without compilation never starts that one, so it stays 0.
PARTS = ("load", "data", "compile", "train", "eval", "sample", "save")


def cost_usd(config: Config, seconds: float) -> float | None:
    """Price of all instances of the run for ``seconds``; None without a configured price, never a guess."""
    price = config.accelerator.price_usd_per_hour
    return None if price is None else instances(config) * price * seconds / 3600


def hardware(config: Config) -> dict[str, Any]:
    """What runs are only comparable on the same of."""
    return {
        "accelerator": config.accelerator.name,
        "machine": platform.machine(),
        "logical_cpus": psutil.cpu_count(),
        # Machines of one kind differ by some kilobytes.
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        # Replicas share one machine's CPUs, but each takes an accelerator of its own.
        "devices": 1 if config.accelerator.device == "cpu" else world_size(config),
    }


@dataclass(frozen=True)
class Reached:
    """What training came to: held-out losses in nats a trained token, where the weights are, whether any changed, and
    on Neuron the numbers about graphs."""

    eval_loss_before: float
    eval_loss_after: float
    saved: str | None
    weights_changed: bool
    graphs: dict[str, Any]


def train_result(
    config: Config,
    engine: Engine,
    outcome: FitResult,
    recorder: Recorder,
    data: DataReport,
    stopwatch: Stopwatch,
    attempts: list[Attempt],
    saves: SaveReport,
    reached: Reached,
) -> TrainResult:
    """Every number of the run but the wall time, which is known last."""
    counts = engine.parameters()
    skip = config.tracking.skip_steps
    peak = config.accelerator.peak_tflops
    peak_flops = None if peak is None else peak * 1e12 * world_size(config)
    host, device = engine.peak_memory()
    frozen_base = config.method.name == "lora"
    lost_seconds = sum(attempt.lost_seconds for attempt in attempts)
    parts = {f"{part}_seconds": stopwatch.seconds.get(part, 0.0) for part in PARTS}
    values: dict[str, Any] = {
        "status": outcome.status,
        "definitions": DEFINITIONS_VERSION,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "method": config.method.name,
        "quantized_base": config.lora.quantize_base if frozen_base else None,
        "seed": config.seed,
        "total_params": counts.total,
        "trainable_params": counts.trainable,
        "trainable_params_local": counts.trainable_local,
        "trainable_fraction": counts.trainable / counts.total,
        "instances": instances(config),
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "train_loss_first": recorder.losses[0] if recorder.losses else None,
        "train_loss_last": recorder.losses[-1] if recorder.losses else None,
        **summarize(recorder.steps, skip, engine.replicas),
        **utilization(engine.model_size(), recorder.steps, skip, frozen_base, peak_flops),
        **parts,
        # Paid for all of it, also for what had to be done twice.
        "cost_usd": cost_usd(config, sum(stopwatch.seconds.values()) + lost_seconds),
        "attempts": max(len(attempts), 1),
        "lost_steps": sum(attempt.lost_steps for attempt in attempts),
        "lost_seconds": lost_seconds,
        "checkpoints": asdict(saves),
        "peak_memory_bytes": host,
        "peak_device_memory_bytes": device,
        "data": asdict(data),
        "hardware": hardware(config),
        "libraries": installed_packages(LIBRARIES),
        **asdict(reached),
    }
    return TrainResult(**values)
