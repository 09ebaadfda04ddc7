"""Cross-entropy of an output head whose rows the ranks of a replica share: each has the logits of its part of the
vocabulary, a chunk of positions at a time, and three numbers a position are exchanged."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from trainer.data.tokenize import IGNORE
from trainer.models.loss import CHUNK, EarlyGradients, add_product


def split_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What ``trainer.models.loss.linear_cross_entropy`` returns, the same on every rank of the replica. All of them
    call it, with the same ``targets`` [B, L].

    ``hidden`` [B, L, H] lies over the ranks by positions, the head ``weight`` [V, H] by its rows: DTensors of one mesh.
    """
    assert isinstance(hidden, DTensor)
    assert isinstance(weight, DTensor)
    mesh = weight.device_mesh
    # Each rank's rows give a part of the gradient of all positions: it is summed on its way back to their ranks.
    whole = hidden.redistribute(mesh, [Replicate()]).to_local(grad_placements=[Partial()])
    part = weight.to_local(grad_placements=[Shard(0)])
    counts = targets != IGNORE
    own = targets[counts] - mesh.get_local_rank() * len(part)
    loss: torch.Tensor = _SplitCrossEntropy.apply(whole[counts], part, own, mesh.get_group(), torch.is_grad_enabled())
    return loss


class _SplitCrossEntropy(EarlyGradients):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, group: Any, training: bool
    ) -> torch.Tensor:
        """``targets`` [n] are rows of ``weight``, of other ranks' rows where there are none of that number."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden, of_weight = (training and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.zeros_like(hidden) if of_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
        matrix = weight.to(hidden.dtype)
        for start in range(0, len(targets), CHUNK):
            part, target = hidden[start : start + CHUNK], targets[start : start + CHUNK, None]
            here = (target >= 0) & (target < len(weight))
            row = target.clamp(0, len(weight) - 1)
            logits = (part @ matrix.T).float()
            largest = logits.max(dim=-1, keepdim=True).values
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
            logits -= largest
            chosen = torch.where(here, logits.gather(1, row), 0.0)
            sums = torch.cat([logits.exp_().sum(dim=-1, keepdim=True), chosen], dim=1)
            dist.all_reduce(sums, group=group)
            total += (sums[:, 0].log() - sums[:, 1]).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            gradient = logits.div_(sums[:, :1])
            gradient.scatter_add_(1, row, -here.float())
            gradient = gradient.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, matrix, out=grad_hidden[start : start + CHUNK])
            if grad_weight is not None:
                add_product(grad_weight, gradient.T, part)
        ctx.grads = grad_hidden, grad_weight if grad_weight is None else grad_weight.to(weight.dtype)
        return total
