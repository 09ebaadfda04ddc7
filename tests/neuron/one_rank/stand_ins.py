"""AWS's modules and torch_xla where a model isn't split, on a CPU.

neuronx_distributed's layers are torch's own, its groups hold whole models, and nothing is traced. What else
optimum-neuron imports is a name that does nothing; optimum-neuron itself is the real one.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import types
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.checkpoint
from torch import nn

PACKAGES = {"torch_xla", "neuronx_distributed", "torch_neuronx", "neuronxcc", "libneuronxla", "nki", "nkilib"}
GRADS = "neuronx_distributed.parallel_layers.grads"
REPLICAS, REPLICA = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])


class _Names(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing


class Nothing(metaclass=_Names):
    """Whatever is asked for; as a decorator it leaves a function as it is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else Nothing()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class StandIn(types.ModuleType):
    """A module in which every name is found."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing


class Linear(nn.Linear):
    """Column- or row-parallel, of one part."""

    def __init__(
        self, input_size: int, output_size: int, bias: bool = True, dtype: Any = None, device: Any = None, **others: Any
    ) -> None:
        super().__init__(input_size, output_size, bias, device, dtype)
        self.input_size, self.output_size, self.init_method = input_size, output_size, others.get("init_method")
        self.tensor_parallel_group = None
        for name in ("gather_output", "input_is_parallel", "sequence_parallel_enabled", "stride", "sequence_dimension"):
            setattr(self, name, others.get(name, False))
        mark_split(self.weight)

    def initialize_weight_and_bias(self) -> None: ...


class ColumnParallelLinear(Linear): ...


class RowParallelLinear(Linear): ...


class ParallelEmbedding(nn.Embedding):
    def __init__(self, number: int, size: int, padding: int | None = None, dtype: Any = None, **others: Any) -> None:
        super().__init__(number, size, padding, dtype=dtype)
        mark_split(self.weight)


def mark_split(parameter: Any) -> None:
    parameter.tensor_model_parallel, parameter.num_partitions = True, 1
    parameter.partition_dim, parameter.partition_stride = 0, 1


def create_local_weight(weight: torch.Tensor, *args: Any, out_weight: torch.Tensor | None = None) -> torch.Tensor:
    if out_weight is None:
        return weight
    with torch.no_grad():
        return out_weight.copy_(weight)


def get_grad_norm(parameters: list[Any]) -> torch.Tensor:
    return torch.stack([(p.grad.detach() ** 2).sum() for p in parameters if p.grad is not None]).sum().sqrt()


def clip_grad_norm(parameters: list[Any], max_norm: float, norm_type: float = 2) -> torch.Tensor:
    """By the module's get_grad_norm, which the engine puts another one around."""
    norm: torch.Tensor = sys.modules[GRADS].get_grad_norm(parameters)
    for parameter in parameters:
        parameter.grad.mul_(min(1.0, max_norm / (float(norm) + 1e-6)))
    return norm


def bucket_allreduce_gradients(gradients: list[torch.Tensor], **others: Any) -> None:
    """The mean over the replicas."""
    for gradient in gradients:
        gradient /= REPLICAS
        dist.all_reduce(gradient)


def ones(*names: str) -> dict[str, Any]:
    return {f"get_{name}_parallel_size": lambda: 1 for name in names}


PRESENT: dict[str, dict[str, Any]] = {
    "torch_xla": {"__version__": "2.8.0", "sync": lambda *args, **kwargs: None},
    "torch_xla.core.xla_model": {
        "REDUCE_SUM": "sum",
        "xla_device": lambda: torch.device("cpu"),
        "mark_step": lambda: None,
        "get_rng_state": lambda: 1 << 63,
        "set_rng_state": lambda seed: None,
        "is_master_ordinal": lambda local=True: REPLICA == 0,
        "get_local_ordinal": lambda: REPLICA,
        "add_step_closure": lambda closure, args=(): closure(*args),
    },
    "torch_xla.runtime": {
        "global_ordinal": lambda: REPLICA,
        "world_size": lambda: REPLICAS,
        "device_type": lambda: "CPU",
    },
    "torch_xla.utils.checkpoint": {"checkpoint": partial(torch.utils.checkpoint.checkpoint, use_reentrant=True)},
    "torch_xla.debug.metrics": {"counter_value": lambda name: None},
    "torch_neuronx.utils": {"get_platform_target": lambda: "trn1"},
    "neuronx_distributed": {"__version__": "0.15.0"},
    "neuronx_distributed.parallel_layers.parallel_state": {
        **ones("tensor_model", "pipeline_model", "context_model", "expert_model"),
        "get_data_parallel_size": lambda: REPLICAS,
        "get_data_parallel_rank": lambda: REPLICA,
        "get_tensor_model_parallel_rank": lambda: 0,
        "get_pipeline_model_parallel_rank": lambda: 0,
        "model_parallel_is_initialized": lambda: True,
    },
    GRADS: {
        "get_grad_norm": get_grad_norm,
        "clip_grad_norm": clip_grad_norm,
        "bucket_allreduce_gradients": bucket_allreduce_gradients,
    },
    "neuronx_distributed.parallel_layers.layers": {
        "create_local_weight": create_local_weight,
        "BaseParallelLinear": Linear,
        "ColumnParallelLinear": ColumnParallelLinear,
        "RowParallelLinear": RowParallelLinear,
        "ParallelEmbedding": ParallelEmbedding,
    },
    "neuronx_distributed.parallel_layers.utils": {
        "divide": lambda size, parts: size // parts,
        "get_local_world_size": lambda: REPLICAS,
    },
    "neuronx_distributed.utils.model_utils": {"move_model_to_device": lambda model, device: model.to(device)},
}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of the packages."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in PACKAGES:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module).update(PRESENT.get(module.__name__, {}))


sys.meta_path.insert(0, Finder())
# optimum-neuron would join one of backend "xla", unless there is one.
dist.init_process_group("gloo")
