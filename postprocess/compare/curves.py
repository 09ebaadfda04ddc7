"""Held-out losses along a run: at equal steps, and for equal money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from postprocess.compare.runs import Evaluation, Run


@dataclass(frozen=True)
class Budget:
    """What every run of a group may spend on optimizer steps."""

    amount: float
    unit: str
    """usd, or s of training time when a run has no price"""


def interpolate(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """y at ``x`` on straight lines between ``points``, ordered by x; None outside of them: nothing is extrapolated."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def common_step(runs: Sequence[Run]) -> int | None:
    """The largest step that every run evaluated; None when it is only the untrained model at step 0."""
    shared = set.intersection(*({evaluation.step for evaluation in run.evaluations} for run in runs))
    return max((step for step in shared if step > 0), default=None)


def loss_at_step(run: Run, step: int | None) -> float | None:
    """The held-out loss that the run measured at ``step``, nats a trained token."""
    return next((evaluation.loss for evaluation in run.evaluations if evaluation.step == step), None)


def spending_unit(runs: Sequence[Run]) -> str:
    """usd when every run has a price, else s: dollars and seconds never stand on one axis."""
    return "usd" if all(run.price is not None for run in runs) else "s"


def spent(run: Run, evaluation: Evaluation, unit: str) -> float:
    """Cost of the optimizer steps alone until ``evaluation``: evaluating more often makes no method look dearer."""
    cost = run.cost_usd(evaluation.train_seconds) if unit == "usd" else None
    return evaluation.train_seconds if cost is None else cost


def equal_budget(runs: Sequence[Run]) -> Budget | None:
    """The smallest of what the runs had spent at their last evaluation: no run is extrapolated."""
    unit = spending_unit(runs)
    if not all(run.evaluations for run in runs):
        return None
    amount = min(spent(run, run.evaluations[-1], unit) for run in runs)
    return Budget(amount, unit) if amount > 0 else None


def loss_at_budget(run: Run, budget: Budget | None) -> float | None:
    """The held-out loss when the run had spent ``budget``, between its own evaluations."""
    if budget is None:
        return None
    return interpolate([(spent(run, each, budget.unit), each.loss) for each in run.evaluations], budget.amount)
