"""The optimizer steps of a run, and what has to fit into them: one set of rules for the configuration, the plan, the
stage fetch and training, which each know the number of rows better than the one before."""

from __future__ import annotations

import math
from collections.abc import Iterator

from launcher.checks.diagnostic import Diagnostic
from launcher.config.schema import Config
from launcher.errors import UsageError


def total_steps(config: Config, rows: int) -> int:
    """Optimizer steps of the run on ``rows`` training rows, whole global batches: by epochs, at most max_steps."""
    by_epochs = math.ceil(config.training.epochs * (rows // config.training.global_batch_size))
    return by_epochs if config.training.max_steps is None else min(by_epochs, config.training.max_steps)


def warmup_steps(config: Config, steps: int) -> int:
    """Steps of warm-up of a run of ``steps``: the ratio's share of them, rounded up as transformers does, where one is
    given; the constant schedule has none."""
    training = config.training
    if training.scheduler == "constant":
        return 0
    return training.warmup_steps if training.warmup_ratio is None else math.ceil(training.warmup_ratio * steps)


def step_problems(config: Config, steps: int, why_so_many: str) -> Iterator[Diagnostic]:
    """What doesn't fit into ``steps``; ``why_so_many`` says where that number comes from, such as
    "training.max_steps=16"."""
    training, skipped = config.training, config.tracking.skip_steps
    if steps <= skipped:
        why = f"leaves no step to measure of {why_so_many}"
        yield Diagnostic("tracking.skip_steps", skipped, why, f"at most {max(steps - 1, 0)}, or train longer")
    stops_early = training.early_stopping_patience is not None
    if stops_early and training.eval_every is not None and training.eval_every > steps:
        why = f"is past {why_so_many}, so that early stopping never looks"
        yield Diagnostic("training.eval_every", training.eval_every, why, f"at most {steps}")
    yield from _warmup_problems(config, steps, why_so_many)


def _warmup_problems(config: Config, steps: int, why_so_many: str) -> Iterator[Diagnostic]:
    """Step k of a warm-up of w has k/w of the peak, or (k-1)/w with warmup_from_zero: which step has all of it?"""
    training, warm = config.training, warmup_steps(config, steps)
    most = steps - 1 if training.warmup_from_zero else steps
    if warm <= most or warm == 0:
        return
    why = f"leaves no step at the peak learning rate of {why_so_many}"
    if training.warmup_ratio is not None:
        yield Diagnostic(
            "training.warmup_ratio", f"{training.warmup_ratio:g}", why, "give a smaller one, or train longer"
        )
        return
    share = "or its share of the steps as training.warmup_ratio"
    yield Diagnostic("training.warmup_steps", warm, why, f"at most {most}, {share}, or train longer")


def row_problems(config: Config, rows: int) -> Iterator[Diagnostic]:
    """What the ``rows`` of the data, padding left out, are too few for."""
    training, size = config.training, config.training.global_batch_size
    unit = training.micro_batch_size * config.parallelism.data_parallel
    if rows < size:
        best = rows // unit * unit
        remedy = f"at most {best}" if best else "lower training.micro_batch_size or parallelism.data_parallel"
        yield Diagnostic(
            "training.global_batch_size",
            size,
            f"the data give only {rows:,} rows of training.max_length={training.max_length}, and the rest of a batch "
            "would be padding",
            f"{remedy}, or use more data",
        )
        return
    steps = total_steps(config, math.ceil(rows / size) * size)
    yield from step_problems(config, steps, f"the {steps:,} steps that {rows:,} rows of data give")


def check_enough_rows(config: Config, rows: int) -> None:
    """Raise UsageError with the first of ``row_problems``, if there is one."""
    for problem in row_problems(config, rows):
        raise UsageError(str(problem))
