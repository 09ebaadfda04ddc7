"""The loss of a micro batch and of the held-out rows. Imports what exists on Neuron machines alone."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch_xla

from launcher.errors import TrntuneError
from trainer.compilation.trial import tracing
from trainer.data.collate import Collator
from trainer.engines.base import Rows
from trainer.engines.neuron import pipeline
from trainer.engines.neuron.batch import attention_bias, filled, host_batch
from trainer.engines.neuron.part import Part


def loss_sum(part: Part, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed negative log-likelihood (nats) of the labels of one micro batch on the device.

    ``inputs`` are those of trainer.engines.neuron.batch.host_batch. Raises TrntuneError for a batch of another shape
    than those before.
    """
    part.note_shapes(inputs)
    inputs = dict(inputs)
    if "documents" in inputs:
        inputs["attention_mask"] = attention_bias(inputs.pop("documents"), part.dtype)
    # The second is what Granite's loss takes for the first.
    loss: torch.Tensor = model(**inputs, reduction="sum", num_items_in_batch=1).loss
    return loss


def held_out_loss(part: Part, model: Any, collator: Collator, device: Any, rows: Rows) -> float:
    """Mean negative log-likelihood a trained token over all ``rows``, nats, the same on every rank. All ranks call it.

    Every replica takes its share, in batches of the shape of training; all do equally many. Raises TrntuneError on
    every rank where the mean is not finite, but in a trial run, where nothing is executed.
    """
    size = part.rows_at_once
    share = rows[part.place.data :: part.replicas]
    batches = math.ceil(math.ceil(len(rows) / part.replicas) / size)
    if not part.staged:
        model.eval()
    losses, trained = [], 0
    with torch.no_grad():
        for number in range(batches):
            batch = collator(filled(share[number * size : (number + 1) * size], size))
            inputs = host_batch(batch, part.config.dataset.packing)
            if part.staged:
                losses.append(pipeline.run(part, model, pipeline.inputs([inputs]), device, training=False))
            else:
                losses.append(loss_sum(part, model, {name: t.to(device) for name, t in inputs.items()}))
            trained += int(batch["num_trained"])
            torch_xla.sync()
    if not part.staged:
        model.train()
    total, labels = part.summed([sum(float(loss) for loss in losses), float(trained)])
    if not math.isfinite(total / labels) and not tracing():
        raise TrntuneError(f"the held-out loss is {total / labels}: the weights are broken; lower the learning rate")
    return total / labels
