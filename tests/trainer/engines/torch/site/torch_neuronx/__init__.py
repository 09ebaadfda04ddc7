"""Pretends that this machine has one Neuron device: what torch needs of torch-neuronx to know a device "neuron".

torch's own entry point loads it, as it would AWS's. The device is torch's PrivateUse1; its tensors have that device,
and hold a tensor of the CPU, with which everything is computed: torch has a backend in Python for it, in which devices,
random numbers, the autograd engine's threads and what DistributedDataParallel, FSDP2 and DTensor ask of a device work,
but autocast and waiting for the device don't. Processes exchange the CPU's tensors by gloo. What is asked of the device
is written down, and left in $TRNTUNE_RECORD at the end of the process.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
KIND = "neuron"
EVENTS: list[str] = []
"""in order; "program OP SHAPES" where an operation is one that the device would compile: new by name, shapes, dtypes"""
PROGRAMS: set[str] = set()
KEPT: list[Any] = []
"""what is registered for as long as the process lives"""
NOT_FIXED = {"nonzero", "masked_select", "unique", "_unique2", "repeat_interleave"}
"""operations whose results have shapes that follow from what tensors hold"""


class Pretended(torch.Tensor):
    """A tensor of the device, around one of the CPU."""

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> Pretended:
        place = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, host.size(), device=torch.device(KIND, 0), **place)

    def __init__(self, host: torch.Tensor) -> None:
        self.host = host

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


class Everywhere(TorchDispatchMode):
    """Tensors of the CPU that go to the device, and those that are made there, come by here."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(each, "__tensor_flatten__") for each in types):
            return NotImplemented  # a tensor around others, such as DTensor, does it with those: they come by here
        return compute(function, args, kwargs or {})


class Numbers(TorchFunctionMode):
    """torch.tensor goes to the device where no dispatch mode sees it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == KIND:
            place = kwargs.pop("device")
            return function(*args, **kwargs).to(place)
        return function(*args, **kwargs)


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``function`` on the CPU, its results where they belong."""
    leaves, shape = pytree.tree_flatten((args, kwargs))
    given = [leaf for leaf in leaves if isinstance(leaf, Pretended)]
    places = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    there = places[0].type == KIND if places else bool(given)
    if function is aten.copy_.default:
        there = isinstance(args[0], Pretended)
    if given or there:
        Device.used = True
        note(function, given)
    else:
        check_exchange(function, leaves)
    hosts = [on_host(leaf) for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(hosts, shape)
    mine = {id(leaf.host): leaf for leaf in given}  # what is changed in place stays the tensor that it is

    def back(leaf: Any) -> Any:
        if not there or not isinstance(leaf, torch.Tensor):
            return leaf
        return mine[id(leaf)] if id(leaf) in mine else Pretended(leaf)

    return pytree.tree_map(back, function(*args, **kwargs))


def on_host(leaf: Any) -> Any:
    if isinstance(leaf, torch.device):
        return torch.device("cpu") if leaf.type == KIND else leaf
    return leaf.host if isinstance(leaf, Pretended) else leaf


PRODUCTS = ("linear", "matmul", "mm", "addmm", "bmm", "scaled_dot_product_attention")


def in_low_precision(operation: Any) -> Any:
    """``operation`` as autocast has it done: fp32 arguments in the lower precision."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        lower = torch.get_autocast_dtype(KIND)

        def cast(leaf: Any) -> Any:
            cut = isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32 and leaf.device.type == KIND
            return leaf.to(lower) if cut else leaf

        args, kwargs = pytree.tree_map(cast, (args, kwargs))
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return operation(*args, **kwargs)

    return kernel


def note(function: Any, given: list[Pretended]) -> None:
    name = function._schema.name.removeprefix("aten::")
    program = f"{name} {[(str(each.dtype), list(each.shape)) for each in given]}"
    if name in NOT_FIXED or program not in PROGRAMS:
        PROGRAMS.add(program)
        EVENTS.append(f"program {program}")


def check_exchange(function: Any, leaves: list[Any]) -> None:
    """A tensor of the CPU can't be sent by the device's backend."""
    groups: list[Any] = []
    if function.namespace == "c10d":
        boxed = [leaf for leaf in leaves if isinstance(leaf, torch.ScriptObject) and "ProcessGroup" in str(leaf)]
        groups = [*map(torch.distributed.ProcessGroup.unbox, boxed)]
    elif function.namespace == "_c10d_functional":  # DTensor's, which name the group
        names = [argument.name for argument in function._schema.arguments]
        found = dict(zip(names, leaves, strict=False)).get("group_name") if len(names) == len(leaves) else None
        groups = [] if found is None else [torch.distributed.distributed_c10d._resolve_process_group(found)]
    for group in groups:
        if torch.distributed.get_backend(group) == KIND:
            raise RuntimeError(f"{function} sends a tensor of the CPU by the backend {KIND}")


class Device:
    """torch.neuron, as far as it is asked for."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    used = False
    """whether this process has had a tensor there"""

    def is_initialized(self) -> bool:
        return Device.used

    def current_device(self) -> int:
        EVENTS.append("current_device")
        return 0

    def set_device(self, device: Any) -> None:
        EVENTS.append("set_device")
        if device not in (0, torch.device(KIND, 0)):
            raise RuntimeError(f"there is one device, and not {device}")

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers of the device are the CPU's here."""

    def get_rng_state(self) -> torch.Tensor:
        EVENTS.append("get_rng_state")
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        EVENTS.append("set_rng_state")

    def max_memory_allocated(self, device: Any = None) -> int:
        EVENTS.append("max_memory_allocated")
        return 12345

    def is_bf16_supported(self) -> bool:
        return True

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def empty_cache(self) -> None:
        """Nothing is cached here."""

    # Nothing waits for anything here: torch's own for a CPU.
    Stream, Event = torch.cpu.Stream, torch.cpu.Event
    current_stream, stream = staticmethod(torch.cpu.current_stream), staticmethod(torch.cpu.stream)


def autoload() -> None:
    """Called by torch at the end of its import."""
    backend_registration._setup_privateuseone_for_python_backend(KIND, Device())
    # The guard of torch's Python backend: "Backend doesn't support synchronizing all streams on device".
    torch.accelerator.synchronize = lambda *_: EVENTS.append("synchronize")
    torch.accelerator.set_device_index = lambda *_: EVENTS.append("set_device")
    # Autocast's kernels are the backend's own, too: products in its dtype, and nothing else is cast.
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    casts = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for name in PRODUCTS:
        casts.impl(name, in_low_precision(getattr(aten, name)))
    torch.distributed.Backend.register_backend(KIND, _over_gloo, devices=[KIND, "cpu"])
    join = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, **settings: Any) -> None:
        EVENTS.append(f"init_process_group {backend}")
        join(backend, **settings)

    torch.distributed.init_process_group = init_process_group
    # FSDP2 frees what it has gathered by it; tensors of the device have no memory of their own here.
    resize = torch.UntypedStorage.resize_

    def resize_(storage: Any, size: int) -> Any:
        return storage if storage.device.type == KIND else resize(storage, size)

    torch.UntypedStorage.resize_ = resize_
    compile_ = torch.compile

    def taken_down(model: Any = None, **settings: Any) -> Any:
        EVENTS.append(f"torch.compile {settings.get('backend')} {settings.get('dynamic')}")
        return compile_(model, **settings)

    torch.compile = taken_down
    KEPT.append(register_optimizer_step_post_hook(note_update))
    clock = time.perf_counter

    def perf_counter() -> float:
        if sys._getframe(1).f_globals.get("__name__") == "trainer.engines.torch.meter":
            EVENTS.append(f"clock {sys._getframe(1).f_code.co_name}")
        return clock()

    time.perf_counter = perf_counter
    KEPT.extend([others, casts, Everywhere().__enter__(), Numbers().__enter__()])
    if "TRNTUNE_RECORD" in os.environ:
        atexit.register(leave)


def note_update(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Where parameters, gradients and moments lie, or a process's parts of them, once they are updated."""
    parameters = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
    gradients = [each.grad for each in parameters]
    moments = [optimizer.state[each][key] for each in parameters for key in ("exp_avg", "exp_avg_sq")]
    places = [
        {getattr(each, "_local_tensor", each).device.type for each in some} for some in (parameters, gradients, moments)
    ]
    EVENTS.append(f"update {' '.join(','.join(sorted(each)) for each in places)}")


def compile_graph(graph: Any, inputs: list[Any]) -> Any:
    """The device's compiler: it leaves graphs as they are."""
    return graph.forward


def _over_gloo(store: Any, rank: int, size: int, timeout: Any) -> Any:
    """The device's backend: gloo, which sends the CPU's tensors in their place."""
    return torch.distributed.ProcessGroupGloo(store, rank, size, timeout)


def leave() -> None:
    Path(os.environ["TRNTUNE_RECORD"], f"{os.getpid()}.json").write_text(json.dumps(EVENTS))
