"""`python -m launcher.plan.scaling`: the tables of docs/scaling.md, from the plan's own model of trn1.32xlarge.

For each number of instances the fastest layout that fits into memory, and what a step then takes: the plan's estimate,
which is calibrated on one instance, and beside it the exchange of gradients and weights between instances, which one
instance does not have.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from launcher import units
from launcher.architecture.parameters import Parameters, count
from launcher.config.compose import Composer
from launcher.config.schema import ArchitectureConfig, Config
from launcher.neuron.checks import check_adapter
from launcher.plan import duration, memory, schedule

INSTANCES = (1, 4, 16, 64)
MODELS = (("llama3_8b", "8B"), ("llama3_70b", "70B"))
CORES = 32

# The work: a million instruction rows as long as dolly's, packed; what a replica takes in a step stays the same.
ROWS, TOKENS_PER_ROW, LENGTH, ROWS_A_REPLICA = 1_000_000, 190, 2048, 8

# Nothing below is measured by this project.
EFA_BYTES = 100e9  # 800 Gbit/s an instance, each way: AWS's page of Trn1 instances
EFA_SHARE = 0.5  # assumed: what collectives reach of it
GRADIENT_BYTES = 4  # fp32 gradients are reduced, bf16 weights gathered: ZeRO-1 in optimum-neuron
WEIGHT_BYTES = 2
STATE_BYTES = 12  # of a checkpoint: fp32 weights and AdamW's two moments
STORAGE_BYTES = 4.8e9  # assumed: FSx for Lustre, 4.8 TiB at 1,000 MB/s a TiB
SAVE_EVERY = 200  # steps: conf's default
BEFORE_SECONDS = 11 * 60 + 38  # 43:24 in all less 31:46 of training, a published run of Llama 2 7B on one instance
BATCH_LIMIT = 256  # rows: a global batch beyond it is taken for too large to fine-tune with

COMMUNICATION = "communication"


@dataclass(frozen=True)
class Row:
    """One number of instances with its fastest layout."""

    instances: int
    config: Config
    memory_share: float
    """of a core's memory"""
    compute_seconds: float
    """the plan's step"""
    exchange_seconds: float
    """between instances, not hidden behind anything"""
    checkpoint_bytes: float
    low: float
    high: float
    """the calibration's range, as factors of compute_seconds"""

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.exchange_seconds

    @property
    def batch(self) -> int:
        return self.config.training.global_batch_size

    @property
    def tokens_per_second(self) -> float:
        """Positions of packed rows, nearly all of them real."""
        return self.batch * LENGTH / self.step_seconds

    @property
    def epoch_seconds(self) -> float:
        return ROWS * TOKENS_PER_ROW / schedule.ASSUMED_FILL / self.tokens_per_second

    @property
    def save_seconds(self) -> float:
        return self.checkpoint_bytes / STORAGE_BYTES

    @property
    def limits(self) -> list[str]:
        """What costs most beside the computing, where it costs a fifth of it or more."""
        steps = min(SAVE_EVERY, self.epoch_seconds / self.step_seconds)
        shares = {
            COMMUNICATION: self.exchange_seconds / self.step_seconds,
            "checkpoints": self.save_seconds / (steps * self.step_seconds),
            "compile time": BEFORE_SECONDS / (BEFORE_SECONDS + self.epoch_seconds),
            "global batch": 1.0 if self.batch > BATCH_LIMIT else 0.0,
        }
        return [name for name, share in shares.items() if share >= 0.2]


def base(model: str, method: str) -> tuple[Config, ArchitectureConfig]:
    """The work on one model by one method, still without a layout."""
    lines = [
        f"model={model}", f"method={method}", "accelerator=trn1_32xlarge", "parallelism=trn1_tp8_dp4",
        "dataset=dolly15k", f"dataset.rows={ROWS}", f"dataset.tokens_per_row={TOKENS_PER_ROW}",
        f"training.max_length={LENGTH}", "training.precision=bf16",
    ]  # fmt: skip
    config = Composer().compose(lines, multirun=False).runs[0].config
    assert config.model.architecture is not None
    return config, config.model.architecture


def layouts(config: Config, instances: int) -> Iterator[Config]:
    """Tensor parallelism within an instance, pipelines over layers that divide, replicas of what is left; without those
    that optimum-neuron can't adapt."""
    world, layers = instances * CORES, config.model.architecture.layers if config.model.architecture else 1
    for tensor in (8, 32):
        for pipeline in (1, 2, 4, 8, 16):
            if world % (tensor * pipeline) or layers % pipeline:
                continue
            replicas = world // (tensor * pipeline)
            parallel = replace(
                config.parallelism, tensor_parallel=tensor, pipeline_parallel=pipeline, data_parallel=replicas
            )
            for recompute in (False, True):
                training = replace(
                    config.training,
                    global_batch_size=replicas * ROWS_A_REPLICA,
                    micro_batch_size=1,
                    gradient_checkpointing=recompute,
                )
                found = replace(config, parallelism=parallel, training=training)
                if not any(check_adapter(found)):
                    yield found


def fastest(config: Config, facts: ArchitectureConfig, instances: int) -> Row | None:
    """The layout that trains most tokens a second, of those that fit; None when none does."""
    rows = [row(each, facts, instances) for each in layouts(config, instances)]
    fitting = [each for each in rows if each.memory_share <= 1]
    return max(fitting, key=lambda each: each.tokens_per_second, default=None)


def row(config: Config, facts: ArchitectureConfig, instances: int) -> Row:
    """One layout."""
    parameters = count(config, facts)
    data = schedule.from_facts(config)
    assert data is not None
    step = duration.estimate(config, facts, parameters, data)
    assert step is not None
    needed = memory.estimate(config, facts, parameters, 0)
    return Row(
        instances,
        config,
        needed.total / needed.available,
        step.step_seconds * _recomputation(config),
        exchange_seconds(config, parameters, instances),
        STATE_BYTES * parameters.trainable,
        step.low / step.step_seconds,
        step.high / step.step_seconds,
    )


def _recomputation(config: Config) -> float:
    """A forward pass more: a third of full training's step, half of LoRA's, of which the plan has none on Neuron."""
    if not config.training.gradient_checkpointing:
        return 1.0
    return 4 / 3 if config.method.name == "full" else 3 / 2


def exchange_seconds(config: Config, parameters: Parameters, instances: int) -> float:
    """A ring over the replicas of each part of the model leaves an instance once for each part that it holds."""
    replicas = config.parallelism.data_parallel
    if instances == 1 or replicas == 1:
        return 0.0
    parts = min(CORES, CORES * instances // replicas)
    held = max(parameters.trainable_local)
    sent = parts * held * (GRADIENT_BYTES + WEIGHT_BYTES) * (replicas - 1) / replicas
    return sent / (EFA_BYTES * EFA_SHARE)


def table(model: str, name: str, method: str) -> list[str]:
    """One model and method, a line for each number of instances."""
    config, facts = base(model, method)
    lines = [
        f"**{name}, {'full' if method == 'full' else 'LoRA ' + config.lora.name}**",
        "",
        "| instances | fastest layout | memory | rows a step | step, s | exchange, s | tokens/s | of linear | 1 M rows "
        "| checkpoint | limit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    first: Row | None = None
    for instances in INSTANCES:
        found = fastest(config, facts, instances)
        first = first or found
        lines.append(_line(found, first) if found else f"| {instances} | none fits | | | | | | | | | memory |")
    return [*lines, ""]


def _line(found: Row, first: Row | None) -> str:
    parallel, first = found.config.parallelism, first or found
    linear = found.tokens_per_second / first.tokens_per_second * first.instances / found.instances
    layout = (
        f"data {parallel.data_parallel} x tensor {parallel.tensor_parallel} x pipeline {parallel.pipeline_parallel}"
        + (", recomputing" if found.config.training.gradient_checkpointing else "")
    )
    middle, low, high = (
        units.seconds(
            found.epoch_seconds * (factor * found.compute_seconds + found.exchange_seconds) / found.step_seconds
        )
        for factor in (1, found.low, found.high)
    )
    cells = (
        str(found.instances),
        layout,
        f"{found.memory_share:.0%}",
        f"{found.batch:,}",
        f"{found.step_seconds:.2f}",
        f"{found.exchange_seconds:.2f}",
        f"{found.tokens_per_second:,.0f}",
        f"{linear:.0%}",
        f"{middle} ({low} to {high})",
        f"{units.gigabytes(found.checkpoint_bytes)}, {units.seconds(found.save_seconds)}",
        ", ".join(found.limits) or "computing",
    )
    return f"| {' | '.join(cells)} |"


def tables() -> str:
    """All of them, as Markdown."""
    return "\n".join(
        line for model, name in MODELS for method in ("lora", "full") for line in table(model, name, method)
    )


if __name__ == "__main__":
    sys.stdout.write(tables())
