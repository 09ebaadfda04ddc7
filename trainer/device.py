"""What differs between kinds of devices, CUDA's and Neuron's (AWS TorchNeuron), for whoever computes with torch.

No other module of trainer and postprocess names them. torch.accelerator is used for what torch 2.8, the lowest here,
has there; memory and random numbers are asked of the kind's own module (torch.accelerator's memory came with 2.9).
Names of torch.neuron: facts of its beta, to be looked at again with each version (docs/trainium.md).
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import torch

from launcher.errors import TrntuneError

CPU, CUDA, NEURON = "cpu", "cuda", "neuron"
WITH_GENERATORS = (CUDA, NEURON)
"""kinds whose generator's state is part of a checkpoint, under the kind's name"""

_ABSENT = {
    CUDA: "torch sees no CUDA device here; use accelerator=cpu",
    NEURON: (
        "torch sees no Neuron device here: it needs an instance with Trainium2 or 3 and torch-neuronx 2.13 or newer, "
        "which torch loads itself unless TORCH_DEVICE_BACKEND_AUTOLOAD=0; look at neuron-ls, or use accelerator=cpu"
    ),
}


def is_here(kind: str) -> bool:
    """Whether this process can compute on a device of that kind."""
    return kind == CPU or _module(kind) is not None


def check(kind: str, precision: str) -> None:
    """Raise TrntuneError where there is no such device, or it has no bf16: transformers would refuse that when all is
    loaded."""
    if kind == CPU:
        return
    module = _module(kind)
    if module is None:
        raise TrntuneError(f"accelerator.device={kind}: {_ABSENT[kind]}")
    if precision == "bf16" and not module.is_bf16_supported():
        name = module.get_device_name() if kind == CUDA else kind
        raise TrntuneError(f"training.precision=bf16: {name} has no bf16; use training.precision=fp32")


def take(device: torch.device) -> torch.device:
    """``device`` with its index, as this process's own. Of several processes accelerate has given each its own by then:
    CUDA's by LOCAL_RANK; Neuron's after the process group is made, whose backend has shown each process one of them."""
    if device.type == CPU or device.index is not None:
        return device
    torch.accelerator.set_device_index(0)
    return torch.device(device.type, 0)


def synchronize(kind: str) -> None:
    """Wait for what has been handed to the device: before a clock or its memory is read."""
    if kind != CPU:
        torch.accelerator.synchronize()


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that tensors have taken on this process's device; None on a CPU."""
    if device.type == CPU:
        return None
    synchronize(device.type)  # Neuron's allocator works behind the program
    return int(torch.get_device_module(device).max_memory_allocated(device))


def generator_states() -> dict[str, torch.Tensor]:
    """The states of this process's devices' generators, by kind, where a device has been used."""
    states = {}
    for kind in WITH_GENERATORS:
        module = _module(kind)
        # Asking CUDA's starts it; whether Neuron's module can tell of itself is not known.
        if module is not None and (kind != CUDA or module.is_initialized()):
            states[kind] = module.get_rng_state().clone()
    return states


def restore_generators(states: dict[str, torch.Tensor]) -> None:
    """Put generators where ``generator_states`` found them; those of kinds that are not here are left out."""
    for kind in WITH_GENERATORS:
        module = _module(kind)
        if kind in states and module is not None:
            module.set_rng_state(states[kind])


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Inside, products are computed in ``precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def pins_memory(kind: str) -> bool:
    """Whether batches, and parts of a model that lie there, are copied to the device from pinned host memory."""
    return kind == CUDA


def optimizer(kind: str) -> str:
    """AdamW in transformers' terms: Neuron has no fused one, and one by one is as fast there as together."""
    return "adamw_torch" if kind == NEURON else "adamw_torch_fused"


def compiler_backend(kind: str) -> str:
    """What compiles graphs of torch.compile for a device: TorchNeuron brings its own."""
    return "neuron" if kind == NEURON else "inductor"


def host_operators(kind: str) -> list[str] | None:
    """Names of the operations that the host has computed for a device that has no kernel for them; None where nobody
    counts them. Name of the function: a copy of a beta of torch-neuronx."""
    counted = getattr(sys.modules.get("torch_neuronx"), "get_fallback_ops", None) if kind == NEURON else None
    return None if counted is None else sorted(str(name) for name in counted())


def has_fixed_shapes(kind: str) -> bool:
    """Whether each new shape is compiled, so that all batches must have one and nothing may depend on what they hold.

    Such a device has neither fp64 nor fast int64: what is counted is reduced on the host, and ids are int32."""
    return kind in (NEURON, "xla")


def _module(kind: str) -> Any:
    """torch.<kind> where there is one and it has a device, else None."""
    module = getattr(torch, kind, None)
    return module if module is not None and module.is_available() else None
