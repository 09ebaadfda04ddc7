"""The held-out loss, exact over all rows and replicas."""

from __future__ import annotations

import math

import torch

from launcher.errors import TrntuneError
from trainer.engines.base import Rows
from trainer.engines.torch.replica import Replica


def held_out_loss(replica: Replica, rows: Rows) -> float:
    """Mean negative log-likelihood a trained token over all ``rows``, nats, the same on every rank. All ranks call it.

    Every replica takes its share of the rows and sums are added: no replica's mean weighs more than others'. Raises
    TrntuneError on every rank where the mean is not finite.
    """
    group, size = replica.group, replica.config.training.micro_batch_size
    share = rows[group.replica :: group.replicas]
    # A model in parts needs all ranks for each forward pass: one that has no rows left takes the first one for nothing.
    longest = math.ceil(len(rows) / group.replicas) if replica.shards is not None else len(share)
    totals = torch.zeros(2, dtype=torch.float64, device=group.counts)
    replica.module.eval()
    with replica.without_gradients(), replica.autocast():
        for start in range(0, longest, size):
            own = share[start : start + size]
            part = [*(own or rows[:1])]
            part += [()] * (size - len(part)) if replica.one_shape else []
            batch = replica.collator(part)
            loss: torch.Tensor = replica.module(**replica.inputs(batch))
            if own and group.speaks:
                totals += torch.stack([loss.to(group.counts).double(), batch["num_trained"].double().to(group.counts)])
    group.all_reduce(totals)
    mean = float(totals[0] / totals[1])
    if not math.isfinite(mean):
        raise TrntuneError(f"the held-out loss is {mean}: {_why_not_finite(replica)}")
    return mean


def _why_not_finite(replica: Replica) -> str:
    """The base's weights were finite when they were loaded."""
    if bad := replica.not_finite():
        return f"{bad} holds numbers that are not finite; lower training.learning_rate"
    if replica.updated:
        return "the weights are finite, but too large; lower training.learning_rate"
    precision = replica.config.training.precision
    advice = "take training.precision=fp32" if precision != "fp32" else "take another model"
    return f"the base's own, though its weights are finite, with training.precision={precision}; {advice}"
