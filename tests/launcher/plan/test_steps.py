"""What has to fit into the steps of a run, by the learning rates that its steps have."""

from __future__ import annotations

import pytest

from launcher.errors import UsageError
from launcher.plan.steps import check_enough_rows, row_problems, total_steps, warmup_steps
from tests.launcher.conftest import single

BY_DATA = ("training.max_steps=null", "training.warmup_steps=0", "training.eval_every=null")


def first(rows: int, *arguments: str) -> str | None:
    """The first problem of a run whose data give that many rows."""
    problem = next(row_problems(single(*BY_DATA, *arguments).config, rows), None)
    return None if problem is None else str(problem)


def rate(warm: int, step: int, from_zero: bool) -> float:
    """Share of the peak that step ``step``, from 1 on, of a warm-up has, by docs/measurement.md."""
    return min(1.0, (step - from_zero) / warm)


@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("warm", [1, 2, 5, 6, 7, 8, 100])
def test_a_warm_up_is_refused_where_no_step_has_the_peak(warm, from_zero):
    steps = 7
    peaks = any(rate(warm, step, from_zero) == 1.0 for step in range(1, steps + 1))
    found = first(2 * steps, f"training.warmup_steps={warm}", f"training.warmup_from_zero={from_zero}")
    assert (found is None) == peaks
    if found:
        assert found.startswith(f"training.warmup_steps={warm}: leaves no step at the peak learning rate of the 7 ")
        assert f"at most {steps - from_zero}" in found


@pytest.mark.parametrize(
    ("arguments", "rows", "says"),
    [
        (["training=epochs3", "training.warmup_ratio=null", "training.warmup_steps=100"], 10, "global_batch_size=12"),
        (["training=epochs3", "training.warmup_ratio=null", "training.warmup_steps=100"], 12, "warmup_steps=100"),
        (["training=epochs3"], 12, None),
        (["training.epochs=0.1", "training.warmup_steps=2", "tracking.skip_steps=0"], 20, "the 1 steps that 20 rows"),
        (["training.epochs=0.1"], 20, "tracking.skip_steps=2: leaves no step to measure"),
        (["training.epochs=0.1", "tracking.skip_steps=0"], 20, None),
        (["training.global_batch_size=64"], 63, "at most 63"),
        (["training.global_batch_size=64", "parallelism=ddp2"], 63, "at most 62"),
        (["training.global_batch_size=64", "training.micro_batch_size=64"], 63, "lower training.micro_batch_size"),
        (["training.global_batch_size=64", "tracking.skip_steps=0"], 64, None),
        (["training.early_stopping_patience=1", "training.eval_every=6"], 10, "is past the 5 steps"),
        (["training.early_stopping_patience=1", "training.eval_every=5"], 10, None),
    ],
)
def test_data_are_refused_that_batch_or_steps_need_more_of(arguments, rows, says):
    found = first(rows, *arguments)
    assert (found is None) if says is None else (says in found)


def test_steps_and_their_warm_up_are_counted_together():
    config = single(*BY_DATA, "training.epochs=1.5", "training.warmup_ratio=0.1").config
    assert [total_steps(config, rows) for rows in (2, 8, 20)] == [2, 6, 15]
    assert [warmup_steps(config, steps) for steps in (1, 10, 11, 15)] == [1, 1, 2, 2]
    constant = single("training.scheduler=constant", "training.warmup_ratio=0.1").config
    assert warmup_steps(constant, 15) == 0
    with pytest.raises(UsageError, match=r"global_batch_size=2: the data give only 1 rows"):
        check_enough_rows(config, 1)
