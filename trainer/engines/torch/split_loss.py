"""Cross-entropy of an output head whose rows the ranks of a replica share: each has the logits of its part of the
vocabulary, a chunk of positions at a time, and three numbers a position are exchanged."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from trainer.data.tokenize import IGNORE
from trainer.models.loss import CHUNK, EarlyGradients, add_product


def split_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What ``trainer.models.loss.linear_cross_entropy`` returns, the same on every rank of the replica. All of them
    call it, with the same ``targets`` [B, L].

    ``hidden`` [B, L, H] lies over the ranks by positions, the head ``weight`` [V, H] by its rows: DTensors of one mesh.
    """
    whole, part, mesh = _own_parts(hidden, weight)
    counts = targets != IGNORE
    loss: torch.Tensor = _SplitCrossEntropy.apply(
        whole[counts], part, targets[counts], _ByIndex, mesh, torch.is_grad_enabled()
    )
    return loss


def fixed_split_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same as ``trainer.models.loss.fixed_cross_entropy`` computes it: by operations whose shapes follow from those
    of the arguments alone, of all positions. ``targets`` may be int32."""
    whole, part, mesh = _own_parts(hidden, weight)
    with torch.autocast(hidden.device.type, enabled=False):
        loss: torch.Tensor = _SplitCrossEntropy.apply(
            whole.flatten(0, -2), part, targets.flatten(), _ByComparing, mesh, torch.is_grad_enabled()
        )
    return loss


def _own_parts(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, DeviceMesh]:
    """All positions of ``hidden``, this rank's rows of ``weight``, and the ranks that share them."""
    assert isinstance(hidden, DTensor)
    assert isinstance(weight, DTensor)
    mesh = weight.device_mesh
    # Each rank's rows give a part of the gradient of all positions: it is summed on its way back to their ranks.
    whole = hidden.redistribute(mesh, [Replicate()]).to_local(grad_placements=[Partial()])
    return whole, weight.to_local(grad_placements=[Shard(0)]), mesh


class _Targets(Protocol):
    """Where the targets [n, 1] of a chunk lie among a rank's ``rows`` of the vocabulary, from ``first`` on."""

    def __init__(self, targets: torch.Tensor, first: int, rows: int) -> None: ...

    def of(self, logits: torch.Tensor) -> torch.Tensor:
        """Of ``logits`` [n, rows] those of the targets [n, 1], 0 where they are another rank's."""

    def gradient(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Of the loss by the logits, from their softmax [n, rows], which may be changed in place."""

    def sum_of(self, losses: torch.Tensor) -> torch.Tensor:
        """The sum of ``losses`` [n]."""


class _ByIndex:
    """Each position has a target."""

    def __init__(self, targets: torch.Tensor, first: int, rows: int) -> None:
        self.here = (targets >= first) & (targets < first + rows)
        self.row = (targets - first).clamp(0, rows - 1)

    def of(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.where(self.here, logits.gather(1, self.row), 0.0)

    def gradient(self, probabilities: torch.Tensor) -> torch.Tensor:
        return probabilities.scatter_add_(1, self.row, -self.here.float())

    def sum_of(self, losses: torch.Tensor) -> torch.Tensor:
        return losses.sum()


class _ByComparing:
    """No index, which would be int64; IGNORE is no target."""

    def __init__(self, targets: torch.Tensor, first: int, rows: int) -> None:
        self.chosen = torch.arange(first, first + rows, dtype=targets.dtype, device=targets.device) == targets
        self.counts = (targets != IGNORE).float()

    def of(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.where(self.chosen, logits, 0.0).sum(dim=-1, keepdim=True)

    def gradient(self, probabilities: torch.Tensor) -> torch.Tensor:
        return (probabilities - self.chosen.float()) * self.counts

    def sum_of(self, losses: torch.Tensor) -> torch.Tensor:
        return (losses * self.counts[:, 0]).sum()


class _SplitCrossEntropy(EarlyGradients):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        way: type[_Targets],
        mesh: DeviceMesh,
        training: bool,
    ) -> torch.Tensor:
        """``targets`` [n]; ``mesh``: the ranks that share the rows of the head."""
        first, group = mesh.get_local_rank() * len(weight), mesh.get_group()
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden, of_weight = (training and needed for needed in ctx.needs_input_grad[:2])
        grads_hidden: list[torch.Tensor] = []
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
        matrix = weight.to(hidden.dtype)
        for part, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            own = way(target[:, None], first, len(weight))
            logits = (part @ matrix.T).float()
            largest = logits.max(dim=-1, keepdim=True).values
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
            logits -= largest
            chosen = own.of(logits)
            sums = torch.cat([logits.exp_().sum(dim=-1, keepdim=True), chosen], dim=1)
            dist.all_reduce(sums, group=group)
            total = total + own.sum_of(sums[:, 0].log() - sums[:, 1])
            if not of_hidden and not of_weight:
                continue
            gradient = own.gradient(logits.div_(sums[:, :1])).to(hidden.dtype)
            if of_hidden:
                grads_hidden.append(gradient @ matrix)
            if grad_weight is not None:
                add_product(grad_weight, gradient.T, part)
        ctx.grads = (
            torch.cat(grads_hidden) if of_hidden else None,
            None if grad_weight is None else grad_weight.to(weight.dtype),
        )
        return total
