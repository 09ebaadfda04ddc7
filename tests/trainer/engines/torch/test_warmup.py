"""The learning rate of each step, against the definition and against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from tests.launcher.conftest import single
from trainer.engines.state import restore_scheduler
from trainer.engines.warmup import begin_above_zero

PEAK, STEPS, WARM = 0.5, 10, 4


def rates(name: str, *settings: str, begin: int = 0, warm: int = WARM) -> list[float]:
    """The learning rates of the steps after ``begin``."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warm, num_training_steps=STEPS)
    config = single(f"training.scheduler={name}", f"training.warmup_steps={warm}", *settings).config
    begin_above_zero(scheduler, config, STEPS)
    if begin:
        restore_scheduler(scheduler, begin)
    found = []
    for _ in range(begin, STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == found[-1:]
        optimizer.step()
        scheduler.step()
    return found


ZERO = "training.warmup_from_zero=true"


def test_the_first_step_has_its_share_and_the_rest_is_transformers() -> None:
    for name in ("linear", "cosine", "constant_with_warmup"):
        found = rates(name)
        assert found[:WARM] == [PEAK * step / WARM for step in (1, 2, 3, 4)]
        assert found[WARM:] == rates(name, ZERO)[WARM:]


def test_transformers_own_schedule_begins_at_zero() -> None:
    assert rates("linear", ZERO)[: WARM + 1] == [PEAK * step / WARM for step in (0, 1, 2, 3, 4)]


@pytest.mark.parametrize("begin", [1, 3, 4, 7])
def test_a_resume_goes_on_with_the_same_rates(begin: int) -> None:
    assert rates("linear", begin=begin) == rates("linear")[begin:]


@pytest.mark.parametrize("name", ["constant", "linear"])
def test_without_a_warm_up_nothing_changes(name: str) -> None:
    warm = WARM if name == "constant" else 0
    assert rates(name, warm=warm) == rates(name, ZERO, warm=warm)
    assert rates(name, warm=warm)[0] == PEAK
