"""The plan as a person reads it: a column a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launcher import units
from launcher.architecture.adapters import MAX_NAMES, saved_modules
from launcher.architecture.tensors import modules
from launcher.config.schema import accumulation_steps, compiles_layers, is_sharded, offloads, world_size
from launcher.errors import first
from launcher.jobs.job import instances
from launcher.jobs.variables import variables
from launcher.plan import disk
from launcher.plan.build import Plan, to_json
from launcher.plan.steps import row_problems, warmup_steps

COLUMN_WIDTH = 30  # that a run needs at least to be readable
UNKNOWN = "not known"

Line = tuple[str, Callable[[Plan], str]]


def print_plans(plans: list[Plan], labels: list[str]) -> None:
    """Print the plans of a command line."""
    if plans[0].config.plan.format == "json":
        listed = [{"run": label, **to_json(plan)} for plan, label in zip(plans, labels, strict=True)]
        print(json.dumps(listed[0] if len(listed) == 1 else listed, indent=2))
        return
    console = Console(highlight=False)
    beside = max(1, (console.width - 20) // COLUMN_WIDTH)
    for start in range(0, len(plans), beside):
        part = slice(start, start + beside)
        console.print(table(plans[part], labels[part]))
    for line in footnotes(plans):
        console.print(escape(line), soft_wrap=True)


def table(plans: list[Plan], labels: list[str]) -> Table:
    """Sections of lines; a line that says nothing about any of the runs is left out."""
    grid = Table(title="Plan: nothing has been started", title_justify="left")
    grid.add_column("")
    for label in labels:
        grid.add_column(escape(label), overflow="fold")
    for lines in SECTIONS:
        rows = [(name, [value(plan) for plan in plans]) for name, value in lines]
        for name, cells in rows:
            if any(cells):
                grid.add_row(name, *map(escape, cells))
        grid.add_section()
    return grid


def footnotes(plans: list[Plan]) -> list[str]:
    """Where the figures come from, each said once."""
    notes = []
    for plan in plans:
        if plan.config.model.architecture is None:
            notes.append("parameters: of the model's own modules; memory and time are those of a Llama of its sizes")
        notes += [f"note: {note}" for note in plan.notes]
        if compiles_layers(plan.config):
            notes.append("compiled layers: memory and time are those of the same layers without torch.compile")
        if plan.epoch is not None:
            notes.append(f"data: {plan.epoch.source}")
            if plan.epoch.unused:
                notes.append(f"data: fields that are not used: {units.shares(plan.epoch.unused)} of the text")
            notes += [f"by that estimate it will be refused: {p}" for p in row_problems(plan.config, plan.epoch.filled)]
        if plan.duration is not None:
            notes += [f"time: {plan.duration.source}", f"rates: {plan.duration.rates.source}"]
            if plan.parameters.packed:
                notes.append("time: unpacking the base in 4 bit comes on top, which the formula doesn't know")
            if offloads(plan.config):
                notes.append(
                    "time: copies from and to host memory and AdamW there come on top; the formula has neither"
                )
        else:
            notes.append(f"time: {no_time(plan)}")
        if plan.config.accelerator.price_usd_per_hour is None and plan.config.accelerator.device != "cpu":
            notes.append(
                "cost: no price is configured; set accelerator.price_usd_per_hour, price_source and price_date"
            )
        elif plan.config.accelerator.price_usd_per_hour is not None:
            accelerator = plan.config.accelerator
            notes.append(
                f"cost: {accelerator.price_usd_per_hour:g} USD an hour ({accelerator.price_source}, "
                f"{accelerator.price_date}), steps and evaluations"
            )
    return list(dict.fromkeys(notes))


def no_time(plan: Plan) -> str:
    """Why no time is estimated."""
    if plan.epoch is None:
        return "not estimated: the size of the data is not known; set dataset.rows and dataset.tokens_per_row"
    if plan.config.accelerator.calibration is None:
        return f"not estimated: conf/accelerator/{plan.config.accelerator.name} has no calibration"
    return f"not estimated: no {plan.config.accelerator.device} device could be measured here"


def verdict(plan: Plan) -> str:
    """Whether it fits, and by what it does not."""
    memory = plan.memory
    if math.isinf(memory.available):
        return "not known: set accelerator.memory_gib"
    if memory.fits:
        return f"fits: {memory.total / memory.available:.0%} of {units.gigabytes(memory.available)}"
    over = units.gigabytes(memory.total - memory.available)
    return f"DOES NOT FIT: {over} over {units.gigabytes(memory.available)}, mostly {memory.largest}"


def active(plan: Plan) -> str:
    """What a mixture of experts computes a token with."""
    counts = plan.parameters
    return units.count(counts.total - counts.idle) if counts.idle else ""


def on_disk(plan: Plan) -> str:
    """What a run that trains will have on disk."""
    return "" if plan.room is None else f"{units.gigabytes(plan.room.most)}: {plan.room.words}"


def disk_verdict(plan: Plan) -> str:
    """Nothing, or why this machine's disk is too small."""
    fault = disk.fault_here(plan.config, plan.room)
    return f"DOES NOT FIT: {fault}" if fault else ""


def trained(plan: Plan) -> str:
    """Trainable parameters and their share of the model's."""
    counts = plan.parameters
    return f"{units.count(counts.trainable)} ({units.share(counts.trainable / counts.total)})"


def beside(plan: Plan) -> str:
    """What an adapter trains beside its matrices, by name."""
    lora, facts = plan.config.lora, plan.config.model.architecture
    if plan.config.method.name == "full":
        return ""
    saved = list(lora.modules_to_save or ())
    if facts is not None:
        saved = list(saved_modules(lora, modules(facts)))
    rows = f"{len(lora.trainable_token_indices)} rows of the embedding" if lora.trainable_token_indices else ""
    biases = {"none": "", "all": "all biases", "lora_only": "biases of adapted layers"}[lora.bias]
    return ", ".join(part for part in (first(saved, MAX_NAMES), rows, biases) if part)


def per_rank(plan: Plan) -> str:
    """Trained and held parameters of a process, on the fullest pipeline stage."""
    counts, stage, parallel = plan.parameters, plan.parameters.fullest, plan.config.parallelism
    if is_sharded(plan.config):
        trained_here, held_here = (
            math.ceil(whole[stage] / parallel.data_parallel) for whole in (counts.trainable_local, counts.local)
        )
        return f"{units.count(trained_here)} of {units.count(held_here)}"
    if world_size(plan.config) == parallel.data_parallel:
        return ""
    stages = len(counts.local)
    where = f" (stage {stage} of 0 to {stages - 1}, the fullest)" if stages > 1 else ""
    return f"{units.count(counts.trainable_local[stage])} of {units.count(counts.local[stage])}{where}"


def factors(plan: Plan) -> str:
    """World size and what it is made of."""
    parallel = plan.config.parallelism
    sizes = {"data": parallel.data_parallel, "tensor": parallel.tensor_parallel, "pipeline": parallel.pipeline_parallel}
    switches = [
        name
        for name, on in (
            ("sequence parallel", parallel.sequence_parallel),
            ("ZeRO-1", parallel.zero_1),
            ("FSDP", is_sharded(plan.config)),
            ("parts in host memory", offloads(plan.config)),
        )
        if on
    ]
    listed = " x ".join(f"{name} {size}" for name, size in sizes.items())
    return f"{world_size(plan.config)} = {listed}" + "".join(f", {switch}" for switch in switches)


def batch(plan: Plan) -> str:
    """The effective batch and its factors."""
    training, config = plan.config.training, plan.config
    rows = (
        f"{training.global_batch_size} rows = micro batch {training.micro_batch_size} x accumulation "
        f"{accumulation_steps(config)} x replicas {config.parallelism.data_parallel}"
    )
    if plan.epoch is None or not plan.schedule.steps_per_epoch:
        return rows
    return f"{rows}; {plan.epoch.examples / plan.schedule.steps_per_epoch:.1f} samples"


def steps(plan: Plan) -> str:
    """Steps an epoch and in all."""
    known = plan.schedule
    if known.steps_per_epoch is None:
        return UNKNOWN if known.steps is None else f"at most {known.steps:,} in all"
    return f"{known.steps_per_epoch:,} an epoch, {known.steps:,} in all"


def learning_rate(plan: Plan) -> str:
    """Peak and schedule, and what the warm-up begins with."""
    training, steps = plan.config.training, plan.schedule.steps
    text = f"{training.learning_rate:g}, {training.scheduler}"
    if steps is None and training.warmup_ratio is not None:
        return f"{text}; {units.share(training.warmup_ratio)} of the steps are warm-up"
    warm = warmup_steps(plan.config, steps or 0)
    if warm == 0:
        return text
    first = "0: it trains nothing" if training.warmup_from_zero else f"{training.learning_rate / warm:g}"
    return f"{text}; {warm} steps of warm-up, the first with {first}"


def padding(plan: Plan) -> str:
    """Share of the positions that are padding."""
    if plan.epoch is None:
        return UNKNOWN
    length = plan.config.training.max_length
    return f"{plan.epoch.padding_fraction(length):.1%} of {plan.epoch.rows:,} rows of {length:,} tokens"


def ranged(plan: Plan, value: float | None, low: float, high: float, unit: Callable[[float | None], str]) -> str:
    """An estimate with its range; ``low`` and ``high`` are factors."""
    if value is None:
        return ""
    return f"{unit(value)} ({unit(value * low)} to {unit(value * high)})"


def step_time(plan: Plan) -> str:
    d = plan.duration
    return "" if d is None else f"{d.step_seconds:.2f} s ({d.low:.2f} to {d.high:.2f} s)"


def scaled(plan: Plan, value: float | None, unit: Callable[[float | None], str], inverse: bool = False) -> str:
    """A figure that grows with the step time, or falls with it."""
    if plan.duration is None:
        return ""
    low, high = (bound / plan.duration.step_seconds for bound in (plan.duration.low, plan.duration.high))
    return ranged(plan, value, 1 / high, 1 / low, unit) if inverse else ranged(plan, value, low, high, unit)


def hours(value: float | None) -> str:
    """Instance hours."""
    return units.DASH if value is None else f"{value:,.2f} h"


def mfu(plan: Plan) -> str:
    return scaled(plan, plan.duration.mfu, units.share, inverse=True) if plan.duration and plan.duration.mfu else ""


def job_lines(plan: Plan) -> str:
    """One line a stage."""
    return "\n".join(f"{job.stage}: {job.how}" for job in plan.jobs)


def environment(plan: Plan) -> str:
    """What the configuration sets for the processes that train, a variable a line."""
    return "\n".join(f"{name}={value}" for name, value in variables("train", plan.config).items())


SECTIONS: tuple[tuple[Line, ...], ...] = (
    (
        ("model, method", lambda p: f"{p.config.model.name}, {method_name(p)}"),
        ("accelerator", lambda p: f"{instances(p.config)} x {p.config.accelerator.name}"),
    ),
    (
        ("parameters", lambda p: units.count(p.parameters.total)),
        ("a token uses", active),
        ("held in 4 bit", lambda p: units.count(p.parameters.packed) if p.parameters.packed else ""),
        ("trained", trained),
        ("trained in full", beside),
        ("trained a process", per_rank),
    ),
    (
        ("weights", lambda p: units.gigabytes(p.memory.weights)),
        ("gradients", lambda p: units.gigabytes(p.memory.gradients)),
        ("optimizer state", lambda p: units.gigabytes(p.memory.optimizer)),
        ("activations", lambda p: units.gigabytes(p.memory.activations)),
        ("loss", lambda p: units.gigabytes(p.memory.loss)),
        ("process, runtime", lambda p: units.gigabytes(p.memory.runtime)),
        ("copy for a checkpoint", lambda p: units.gigabytes(p.memory.checkpoint)),
        ("whole, read or saved", lambda p: units.gigabytes(p.memory.whole) if p.memory.whole else ""),
        ("memory a process", lambda p: units.gigabytes(p.memory.total)),
        ("", verdict),
        ("host memory a process", lambda p: units.gigabytes(p.memory.host) if p.memory.host else ""),
        ("on disk", on_disk),
        ("", disk_verdict),
    ),
    (
        ("processes", factors),
        ("effective batch", batch),
        ("steps", steps),
        ("learning rate", learning_rate),
        ("padding", padding),
    ),
    (
        ("step", step_time),
        ("samples/s", lambda p: scaled(p, p.samples_per_second, units.decimal, inverse=True)),
        ("training time", lambda p: scaled(p, p.train_seconds, units.seconds)),
        ("with evaluations", lambda p: scaled(p, p.wall_seconds, units.seconds)),
        ("MFU", mfu),
        ("instance hours", lambda p: scaled(p, p.instance_hours, hours)),
        ("cost", lambda p: scaled(p, p.cost_usd, units.dollars)),
    ),
    (
        ("jobs", job_lines),
        ("environment", environment),
    ),
)  # fmt: skip


def method_name(plan: Plan) -> str:
    """full, or the adapter in a word."""
    config = plan.config
    return "full" if config.method.name == "full" else f"lora {config.lora.name}"
