"""Early stopping, of every engine: the weights of the lowest evaluation are kept, and put back at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from launcher.config.schema import TrainingConfig
from trainer.checkpoints.state import RestoredState
from trainer.engines.state import ENGINE, Tensors, copied, put
from trainer.signals import BestEvaluation


class BestWeights:
    """The best evaluation so far and this rank's copy of its weights. All ranks make the same calls with the same
    losses."""

    def __init__(
        self,
        training: TrainingConfig,
        trainable: Callable[[], Tensors],
        file: str | None,
        spread: Callable[[Tensors], None],
    ) -> None:
        """``trainable`` gives the tensors that are trained on this rank, not copies. ``file`` is where a checkpoint has
        this rank's copies; None: it keeps none. ``spread`` is called with ``trainable`` on every rank once the ranks
        that keep some have put theirs back, and gives it to the others."""
        self.evaluation = BestEvaluation(training.early_stopping_patience, training.early_stopping_min_delta)
        self.trainable, self.file, self.spread = trainable, file, spread
        self.weights: Tensors = {}
        """copies in host memory; a new best is a new dictionary"""

    @property
    def patience_ended(self) -> bool:
        return self.evaluation.ended

    @property
    def step(self) -> int | None:
        """The step of the best evaluation; None before the first one, and without early stopping."""
        return self.evaluation.step

    def look(self, step: int, loss: float) -> None:
        """Take an evaluation into account, and keep its weights if it is the best."""
        if self.evaluation.look(step, loss):
            self.weights = {} if self.file is None else copied(self.trainable())

    def restore_best(self) -> None:
        """Put the best weights back, on every rank, when an evaluation has kept some."""
        if self.step is None:
            return
        trainable = self.trainable()
        if self.file is not None:
            put(trainable, self.weights)
        self.spread(trainable)

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint; None without an evaluation."""
        return self.evaluation.state()

    def restore_state(self, restored: RestoredState) -> None:
        """Go on as when the checkpoint was written."""
        kept = restored.document(ENGINE)["best"]
        if self.evaluation.patience is None or kept is None:
            return
        self.evaluation.restore(kept)
        if self.file is not None:
            self.weights = restored.tensors(self.file)
