"""torch.compile of decoder layers, each by itself: all of a kind share what is compiled, so that it takes no longer for
a deep model than for a flat one.

All batches have one shape (trainer.data.collate), and sizes are constants of what is compiled. Attention inside the
documents of a row stays outside: it looks at where they end, which is another thing in each row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from launcher.errors import TrntuneError, in_first_line
from trainer.device import compiler_backend, has_fixed_shapes
from trainer.models.attention import DOCUMENT_ATTENTION, document_attention

LIMIT = 64


def check_compiler(device: torch.device) -> None:
    """Raise TrntuneError where torch.compile can't compile for the device: it needs a C++ compiler and Python's headers
    for a CPU, Triton for CUDA. Compiles a sum, in seconds; torch keeps it for the next process."""
    try:
        torch.compile(_sum, backend=compiler_backend(device.type))(torch.ones(8, device=device))
    except Exception as error:  # whatever the compiler and its tools raise
        raise TrntuneError(
            f"training.compile=layers: torch.compile doesn't work here: {_why(error)}; take training.compile=none"
        ) from None


def _sum(x: torch.Tensor) -> torch.Tensor:
    return (x * x + 1).sum()


def compile_layers(layers: Iterable[nn.Module], kind: str, split: bool = False) -> int:
    """Have each layer's forward pass, and its backward pass, compiled when it is first called on a device of ``kind``;
    returns how many layers.

    Names of parameters and what is saved stay as they are. Hooks of a layer (FSDP's, and what gives the first one its
    positions) stay outside; those of modules in it are compiled with it. With ``split`` parameters will be DTensors.
    """
    from torch._dynamo import config as settings
    from torch._functorch import config as autograd_settings

    if split:
        # A DTensor's key in this cache is the same on all ranks (pytorch/pytorch#188390): a rank would be given another
        # one's graph, and wrong gradients without a word. The compiler's own cache knows graphs by what is in them.
        autograd_settings.enable_autograd_cache = False

    if not has_fixed_shapes(kind):  # there a row is one document, and attention is part of the layer
        AttentionInterface.register(DOCUMENT_ATTENTION, torch.compiler.disable(document_attention))
    found: list[Any] = list(layers)
    # Each kind of layer, way of calling and mode of autograd is one; torch would give up after 8, with a warning.
    settings.recompile_limit = max(settings.recompile_limit, LIMIT, 4 * len(found))
    settings.fail_on_recompile_limit_hit = True
    for layer in found:
        compiled = torch.compile(layer.forward, backend=compiler_backend(kind), dynamic=False)
        told = _told(compiled, type(layer).__name__)
        layer.forward = _recomputed(layer, told) if getattr(layer, "gradient_checkpointing", False) else told
    return len(found)


def _recomputed(layer: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, run again in the backward pass in place of what it would keep; ``layer`` itself no longer does that.

    transformers 5 does it within what is compiled, which then is nothing where attention stays outside, and doesn't
    where FSDP makes a class of the layer's later.
    """
    recompute = layer._gradient_checkpointing_func
    layer.gradient_checkpointing = False

    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if layer.training and torch.is_grad_enabled():
            return recompute(functools.partial(forward, **kwargs), *args)
        return forward(*args, **kwargs)

    return wrapper


def _told(forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``forward``, whose compiler's failures are told in one line."""
    from torch._dynamo.exc import TorchDynamoException

    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except TorchDynamoException as error:
            raise TrntuneError(
                f"training.compile=layers: {name} can't be compiled: {_why(error)}; take training.compile=none"
            ) from error

    return wrapper


def _why(error: Exception) -> str:
    """What a compiler itself raised, in one line: torch says before it which compiler that was."""
    return in_first_line(getattr(error, "inner_exception", error))


def as_written() -> AbstractContextManager[None]:
    """Inside, nothing is compiled, nor is what was compiled used: for what has another shape at each call."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
