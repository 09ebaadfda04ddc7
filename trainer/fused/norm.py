"""RMSNorm with its backward pass in four passes over the activations instead of twelve."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from trainer.fused.plain import is_plain

# transformers' classes that compute weight * x / rms(x), by name: each model family has a copy of its own.
_NAMES = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # 1 / rms, [..., 1]
        ctx.save_for_backward(x, inverse, weight)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, inverse, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (x * inverse).mul_(grad).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            grad_x = grad * weight
            pull = (grad_x * x).sum(-1, keepdim=True).mul_(inverse**3).div_(-x.shape[-1])
            grad_x.mul_(inverse).addcmul_(x, pull)
        return grad_x, grad_weight, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension of ``x`` [..., H]; ``weight`` is [H]."""
    out: torch.Tensor = _RMSNorm.apply(x, weight, eps)
    return out


def _forward(norm: Any, original: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    if not is_plain(x, norm.weight):
        return original(x)
    return rms_norm(x, norm.weight, norm.variance_epsilon)


def fuse_norms(model: nn.Module) -> int:
    """Replace the forward of every RMSNorm that is known; returns their number."""
    found: list[Any] = [module for module in model.modules() if type(module).__name__ in _NAMES]
    for norm in found:
        norm.forward = partial(_forward, norm, norm.forward)
    return len(found)
