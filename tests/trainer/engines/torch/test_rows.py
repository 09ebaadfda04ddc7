"""A step is made of its own rows, or it isn't made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from launcher.errors import TrntuneError
from trainer.data.order import MicroBatches, rows_of_step
from trainer.engines.torch.trainer import PackedTrainer


def trainer_at(step: int, sampler: MicroBatches) -> Any:
    """All that check_rows looks at, before the update of this step: 24 rows, global batches of 12."""
    state = SimpleNamespace(global_step=step - 1)
    return SimpleNamespace(state=state, sampler=sampler, rows_of=lambda step: rows_of_step(step, 24, 12, 5))


@pytest.mark.parametrize("replica", [0, 1])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_the_rows_of_a_step_pass_and_those_of_another_pass_do_not(replica: int, step: int) -> None:
    """As where a library that goes on in the middle of a pass tells nobody which pass it is."""
    sampler = MicroBatches(24, 5, 3, replica, 2, step=2)
    epoch, batch = divmod(step - 1, 2)
    for told in (epoch, 1 - epoch):
        sampler.set_epoch(told)
        batches = iter(sampler)
        for _ in range(2 * (batch + 1)):
            next(batches)
        if told == epoch:
            PackedTrainer.check_rows(trainer_at(step, sampler))
        else:
            with pytest.raises(TrntuneError, match=rf"step {step} was given the rows \[\["):
                PackedTrainer.check_rows(trainer_at(step, sampler))
