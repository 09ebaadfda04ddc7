"""Which row is trained on when."""

from __future__ import annotations

import pytest

from trainer.data.order import MicroBatches, epoch_order, rows_of_step


def test_each_pass_has_every_row_once_in_an_order_of_its_own():
    orders = [epoch_order(24, 0, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert epoch_order(24, 1, 0) != orders[0]


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 3])
def test_replicas_share_a_step_so_that_its_rows_do_not_depend_on_how_many_they_are(replicas, size):
    """24 rows, global batches of 12: what the replicas take in a step is what rows_of_step says."""
    accumulation = 12 // (replicas * size)
    loaders = [MicroBatches(24, 5, size, replica, replicas) for replica in range(replicas)]
    for epoch in range(2):
        for loader in loaders:
            loader.set_epoch(epoch)
        batches = [list(loader) for loader in loaders]
        assert {len(each) for each in batches} == {len(loaders[0])} == {2 * accumulation}
        for step in range(2):
            part = slice(step * accumulation, (step + 1) * accumulation)
            taken = [row for each in zip(*(b[part] for b in batches), strict=True) for micro in each for row in micro]
            assert taken == rows_of_step(epoch * 2 + step + 1, 24, 12, 5)
            assert [list(loader.own(taken)) for loader in loaders] == [each[part] for each in batches]
