"""Cross-entropy of a linear output head in chunks: the full [tokens, vocabulary] logits never exist."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from trainer.data.tokenize import IGNORE

CHUNK = 256  # positions at a time: 50 MB of fp32 logits for a vocabulary of 49,152


class EarlyGradients(torch.autograd.Function):
    """Forward computes loss and gradient of a chunk while its logits are there, and leaves the gradients of its first
    arguments in ``ctx.grads``; backward only scales them."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        others = (None for _ in ctx.needs_input_grad[len(grads) :])
        return (*(None if grad is None else _scaled(grad, scale) for grad in grads), *others)


def _scaled(grad: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``grad`` times the fp32 number ``scale``, which bf16 would round by up to 0.4 %, all of the gradient alike."""
    return grad.mul_(scale) if grad.dtype == scale.dtype else (grad.to(scale.dtype) * scale).to(grad.dtype)


class _LinearCrossEntropy(EarlyGradients):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, training: bool
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # needs_input_grad doesn't know of no_grad, and grad mode is off in here: the caller says whether it trains.
        grad_hidden = torch.zeros_like(hidden) if training and ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if training and ctx.needs_input_grad[1] else None
        size = min(CHUNK, len(targets))
        matrix = weight.to(hidden.dtype)  # a head that is trained on a frozen bf16 base is fp32
        # Memory for all chunks: the allocator would take pages of this size from the system each time.
        products = hidden.new_empty(size, len(weight))
        logs = products.new_empty(products.shape, dtype=torch.float32)
        for start in range(0, len(targets), CHUNK):
            index = targets[start : start + CHUNK, None]
            part = hidden[start : start + CHUNK]
            logits = torch.mm(part, matrix.T, out=products[: len(part)])
            log_probabilities = torch.log_softmax(logits.float(), dim=-1, out=logs[: len(part)])
            total -= log_probabilities.gather(1, index).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            grad_logits = log_probabilities.exp_()
            grad_logits.scatter_add_(1, index, torch.full_like(index, -1, dtype=torch.float32))
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, matrix, out=grad_hidden[start : start + CHUNK])
            if grad_weight is not None:
                add_product(grad_weight, grad_logits.T, part)
        ctx.grads = grad_hidden, grad_weight if grad_weight is None else grad_weight.to(weight.dtype)
        return total


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left @ right, without a second tensor of total's size where the types allow it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


class _FixedCrossEntropy(EarlyGradients):
    """The same, of all positions and with nothing that depends on what they hold: no shape, and no index, which would
    be int64. A target is found by comparing, and IGNORE is none of the vocabulary."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, training: bool
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden, of_weight = (training and needed for needed in ctx.needs_input_grad[:2])
        grads_hidden: list[torch.Tensor] = []
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
        matrix = weight.to(hidden.dtype)
        tokens = torch.arange(len(weight), dtype=targets.dtype, device=hidden.device)
        for part, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            target = target[:, None]
            chosen = tokens == target
            log_probabilities = torch.log_softmax((part @ matrix.T).float(), dim=-1)
            total = total - torch.where(chosen, log_probabilities, 0.0).sum()
            if not of_hidden and not of_weight:
                continue
            grad_logits = (log_probabilities.exp() - chosen.float()) * (target != IGNORE).float()
            grad_logits = grad_logits.to(hidden.dtype)
            if of_hidden:
                grads_hidden.append(grad_logits @ matrix)
            if grad_weight is not None:
                add_product(grad_weight, grad_logits.T, part)
        ctx.grads = (
            torch.cat(grads_hidden) if of_hidden else None,
            None if grad_weight is None else grad_weight.to(weight.dtype),
        )
        return total


def fixed_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What ``linear_cross_entropy`` returns, by operations whose shapes follow from those of its arguments alone.

    For devices that compile each shape. ``targets`` may be int32. All positions get logits, a chunk at a time.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # as the other's products, which are told where to go
        loss: torch.Tensor = _FixedCrossEntropy.apply(
            hidden.flatten(0, -2), weight, targets.flatten(), torch.is_grad_enabled()
        )
    return loss


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of the negative log-likelihoods, nats, fp32.

    ``hidden`` is [..., H], ``weight`` the output head [V, H], ``targets`` [...] holds the token that each position
    must predict, or -100. Only positions with a target get logits.
    """
    counts = targets != IGNORE
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden[counts], weight, targets[counts], torch.is_grad_enabled())
    return loss


def as_autocast_multiplies(hidden: torch.Tensor) -> torch.Tensor:
    """``hidden`` in the dtype that autocast multiplies in: it casts none of the loss's products, and a norm with fp32
    weights gives fp32. On devices fp32 products are many times slower."""
    kind = hidden.device.type
    lower = torch.is_autocast_enabled(kind) and hidden.dtype == torch.float32
    return hidden.to(torch.get_autocast_dtype(kind)) if lower else hidden


def dense_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same sum from logits [..., V], for models whose head is more than one matrix."""
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten().long(), ignore_index=IGNORE, reduction="sum"
    )
