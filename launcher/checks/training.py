"""Settings of the optimization and the adapter that cannot work together."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from launcher.architecture.adapter_faults import faults, static_faults
from launcher.architecture.tensors import modules
from launcher.checks.diagnostic import Diagnostic
from launcher.config.schema import Config
from launcher.plan.steps import step_problems


def check_batch(config: Config) -> Iterator[Diagnostic]:
    """The global batch is whole micro batches on every replica."""
    training, replicas = config.training, config.parallelism.data_parallel
    unit = training.micro_batch_size * replicas
    size = training.global_batch_size
    if size % unit:
        below, above = size // unit * unit, (size // unit + 1) * unit
        best = below if below and size - below <= above - size else above
        why = f"must be a multiple of micro_batch_size*data_parallel = {training.micro_batch_size}*{replicas} = {unit}"
        yield Diagnostic("training.global_batch_size", size, why, f"nearest is {best}")


def check_length(config: Config) -> Iterator[Diagnostic]:
    """A row is no longer than the model's positions."""
    facts = config.model.architecture
    length = config.training.max_length
    if facts and length > facts.max_positions:
        why = f"{config.model.name} was built for at most {facts.max_positions} positions"
        yield Diagnostic("training.max_length", length, why, f"at most {facts.max_positions}")


def check_heads(config: Config) -> Iterator[Diagnostic]:
    """Query heads share key/value heads evenly."""
    facts = config.model.architecture
    if facts and facts.heads % facts.kv_heads:
        why = f"must be divided by kv_heads={facts.kv_heads}"
        yield Diagnostic("model.architecture.heads", facts.heads, why, "correct the architecture facts or config.json")


def check_lora(config: Config) -> Iterator[Diagnostic]:
    """The adapter reaches what its settings name. Other families than the plan knows are looked at by
    launcher.architecture.families."""
    if config.method.name != "lora":
        return
    facts = config.model.architecture
    found = list(static_faults(config.lora))
    yield from found
    if facts is not None and config.lora.target_modules and not found:
        yield from faults(config.lora, modules(facts), facts.family)


def check_steps(config: Config) -> Iterator[Diagnostic]:
    """Warm-up, evaluation and the measured window fit into the run."""
    training, steps = config.training, config.training.max_steps
    if training.early_stopping_patience is not None and training.eval_every is None:
        why = "early stopping needs evaluations during training"
        yield Diagnostic(
            "training.early_stopping_patience", training.early_stopping_patience, why, "set training.eval_every"
        )
    if steps is not None:
        yield from step_problems(config, steps, f"training.max_steps={steps}")


def check_unused_lora(config: Config, overrides: Collection[str], swept: Collection[str]) -> Iterator[Diagnostic]:
    """Adapter settings of a full fine-tuning would be silently unused; in a sweep over methods they are not."""
    swept_keys = {line.partition("=")[0] for line in swept}
    if config.method.name != "full" or "method" in swept_keys:
        return
    for line in overrides:
        key, _, value = line.partition("=")
        if key == "lora" or key.startswith("lora."):
            yield Diagnostic(key, value, "is not used with method=full", "leave it out, or take method=lora")


def check_two_warmups(overrides: Collection[str]) -> Iterator[Diagnostic]:
    """A ratio stands in place of the steps that a group of conf/ gives, not of those that are given beside it."""
    given = {key: value for key, _, value in (line.partition("=") for line in overrides)}
    if given.get("training.warmup_steps", "0") != "0" and given.get("training.warmup_ratio", "null") != "null":
        why = f"is not read beside training.warmup_ratio={given['training.warmup_ratio']}"
        yield Diagnostic("training.warmup_steps", given["training.warmup_steps"], why, "leave one of them out")
