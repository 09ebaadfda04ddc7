"""The rows of a replica in micro batches, in the order of trainer.data.order."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from trainer.data.order import MicroBatches
from trainer.engines.base import Rows


class RowLoader(DataLoader[Any]):
    """This replica's micro batches. Its generator is its own: beginning a pass draws nothing from torch's."""

    def __init__(self, rows: Rows, sampler: MicroBatches, **settings: Any) -> None:
        super().__init__(rows, batch_sampler=sampler, generator=torch.Generator(), **settings)  # type: ignore[arg-type]
        self.micro_batches = sampler

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each pass. In a pass that a run goes on in, transformers 5 has put a loader of
        its own round the sampler by then, and calls the sampler's."""
        self.micro_batches.set_epoch(epoch)


def trained_labels(batches: list[Any], device: torch.device) -> torch.Tensor:
    """Labels that count in these collated batches: int64 [], on ``device``."""
    return torch.stack([batch["num_trained"] for batch in batches]).sum().to(device)
