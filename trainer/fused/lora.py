"""A linear layer with its LoRA adapter as one autograd node.

out = x W^T + s (dropout(x) A^T) B^T. The products of rank r are added by the BLAS (addmm) instead of by passes over
the activations, the base's weight gets no gradient, and only x, the dropout's mask and [tokens, r] are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd.function import once_differentiable

from trainer.fused.plain import is_plain


def keep_mask(x: torch.Tensor, p: float) -> torch.Tensor:
    """1 where dropout keeps a value, 0 where it drops it (probability ``p``, to 1/65,536), like ``x``.

    Four decisions from each 64-bit number of torch's generator: a sixth of the time of bernoulli_.
    """
    count = x.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    return torch.ge(numbers, round(p * 2**16) - 2**15, out=torch.empty_like(x).view(-1)).view(x.shape)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        flat = x.flatten(0, -2)
        out = nn.functional.linear(flat, weight, bias)
        small = (flat if mask is None else flat * mask) @ a.T  # [tokens, r]
        out.addmm_(small, b.T, alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, small, mask)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, weight, a, b, small, mask = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        grad_small = (grad @ b).mul_(ctx.scale)
        grad_b = (grad.T @ small).mul_(ctx.scale)
        grad_a = grad_small.T @ (flat if mask is None else flat * mask)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if mask is None:
                grad_x.addmm_(grad_small, a)
            else:
                grad_x.addcmul_(grad_small @ a, mask)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None, None


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    p: float = 0.0,
) -> torch.Tensor:
    """x [..., in] through a frozen ``weight`` [out, in] and ``bias``, plus scale * dropout(x, p) A^T B^T.

    ``a`` is [r, in], ``b`` [out, r]; only x, a and b get gradients.
    """
    mask = keep_mask(x.flatten(0, -2), p) if p > 0 else None
    # Kept values grow by 1 / (1 - p): folded into the scale, it costs no pass.
    out: torch.Tensor = _LoraLinear.apply(x, weight, bias, a, b, mask, scale / (1 - p))
    return out


def _forward(layer: Any, original: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kw: Any) -> torch.Tensor:
    [name] = layer.lora_A
    a, b, base = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.base_layer
    switched = layer.disable_adapters or layer.merged or layer.active_adapters != [name]
    if args or kw or switched or not is_plain(x, base.weight, a, b):
        return original(x, *args, **kw)
    dropout = layer.lora_dropout[name]
    p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    return lora_linear(x, base.weight, base.bias, a, b, layer.scaling[name], p)


def _fits(module: nn.Module) -> bool:
    """True for a plain linear layer with one plain adapter: neither DoRA, nor a bias, nor trained base weights."""
    if type(module) is not Linear or type(module.base_layer) is not nn.Linear:
        return False
    frozen = not any(parameter.requires_grad for parameter in module.base_layer.parameters())
    plain = len(module.lora_A) == 1 and not module.lora_variant and not any(module.lora_bias.values())
    return frozen and plain


def fuse_lora(model: nn.Module) -> int:
    """Replace the forward of every layer that fits; returns their number."""
    found: list[Any] = [module for module in model.modules() if _fits(module)]
    for layer in found:
        layer.forward = partial(_forward, layer, layer.forward)
    return len(found)
