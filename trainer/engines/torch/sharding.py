"""FSDP2: parameters, gradients and moments of a model in equal parts on all ranks of the run.

Each decoder layer is a unit, and what is left (embedding, last norm, output head) with our loss is another: a unit is
whole on a device from when its forward or backward pass begins until that ends. Gradients are reduced after each micro
batch: without that each device would keep those of the whole model until the last one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from launcher.config.schema import Config, offloads
from launcher.errors import TrntuneError, in_first_line
from launcher.host_memory import memory_available
from trainer.device import pins_memory
from trainer.engines.state import Tensors
from trainer.engines.torch.parts import local, whole
from trainer.engines.torch.process_group import ProcessGroup, offloading_group
from trainer.engines.torch.split_loss import fixed_split_cross_entropy, split_cross_entropy
from trainer.engines.torch.state import ADAPTER, live_weights
from trainer.engines.torch.tensor_parallel import DIMENSION, cut_along, split
from trainer.families.choose import check_shardable
from trainer.models.adapt import decoder_layers
from trainer.models.causal_lm import CausalLMLoss
from trainer.models.load import to_device

ROWS = "rows"
"""the mesh's dimension of replicas, over which each part lies by its rows"""


@dataclass(frozen=True)
class Shards:
    """A model in parts. Its ``module``, the CausalLMLoss, has FSDP's methods too."""

    module: Any
    model: PreTrainedModel | PeftModel
    names: dict[str, str]
    """of what training changes, tied ones once: names that it is saved by, and those in ``module``"""

    def weights(self) -> Tensors:
        """This rank's part of what ``live_weights`` gives of a whole model. Not copies."""
        tensors = self._tensors()
        return {name: local(tensors[inner]) for name, inner in self.names.items()}

    def whole_names(self) -> list[str]:
        """Of ``weights``, those that are not in parts: buffers."""
        parameters = dict(self.module.named_parameters())
        return [name for name, inner in self.names.items() if inner not in parameters]

    def cuts(self) -> dict[str, int]:
        """Axes that the ranks of a replica share, by both names of what training changes."""
        tensors = self._tensors()
        axes = [(names, cut_along(tensors[names[1]])) for names in self.names.items()]
        return {name: axis for names, axis in axes if axis is not None for name in names}

    def gathered(self, keep: bool) -> Tensors:
        """What ``write`` takes, by the names in ``module``, in host memory where this rank shall ``keep`` it. All ranks
        call it: one tensor after the other is put together on each device, tied ones once."""
        tensors, found, made = self._tensors(), Tensors(), dict[int, torch.Tensor]()
        for inner in self._stored().values():
            tensor = tensors[inner]
            if id(tensor) not in made:
                together = whole(tensor.detach())
                made[id(tensor)] = together.cpu() if keep else together.new_empty(0)
            found[inner] = made[id(tensor)]
        return found if keep else {}

    def write(self, directory: Path, found: Tensors) -> None:
        """As ``state.save_weights`` does of a whole model, from what ``gathered`` has ``found``. No exchange."""
        tensors = {name: found[inner] for name, inner in self._stored().items()}
        if not isinstance(self.model, PeftModel):
            self.model.save_pretrained(str(directory), state_dict=tensors)
            return
        self.model.save_pretrained(str(directory), state_dict={f"base_model.{inner}": found[inner] for inner in found})
        save_file(tensors, directory / Path(ADAPTER).name, metadata={"format": "pt"})

    def first_numbers(self) -> Tensors:
        """In place of ``state.first_numbers``: one number for each tensor, tied ones the same. No exchange."""
        tensors, made = self._tensors(), dict[int, torch.Tensor]()
        for tensor in tensors.values():
            made.setdefault(id(tensor), torch.zeros(min(1, tensor.numel()), dtype=tensor.dtype))
        return {name: made[id(tensors[inner])] for name, inner in self._stored().items()}

    def whole_bytes(self) -> int:
        """Of what training changes, on all ranks."""
        tensors = self._tensors()
        return sum(tensors[inner].numel() * tensors[inner].element_size() for inner in self.names.values())

    def reshard(self) -> None:
        """Free what a forward pass without a backward pass has left whole: parameters are the parts again."""
        self.module.reshard()

    def _stored(self) -> dict[str, str]:
        """``names``, and for a model those of tied tensors too."""
        if isinstance(self.model, PeftModel):
            return self.names
        return {name: f"model.{name}" for name in self.model.state_dict(keep_vars=True)}

    def _tensors(self) -> Tensors:
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        return {**parameters, **dict(self.module.named_buffers(remove_duplicate=False))}


@contextmanager
def in_turn(group: ProcessGroup, config: Config, model_bytes: int | None) -> Iterator[DeviceMesh]:
    """Inside are as many ranks of a machine at once as have room: each has a whole model of ``model_bytes`` in host
    memory until it is sharded; None, not known: one after the other. All ranks call it; what is inside exchanges
    nothing. Gives the devices that ``shard`` takes."""
    mesh = _mesh(group, config)
    fitting = torch.tensor(float(models_at_once(model_bytes, memory_available())), device=group.counts)
    own = int(os.environ.get("LOCAL_RANK", group.rank)) // int(group.all_reduce(fitting, dist.ReduceOp.MIN))
    turns = group.all_reduce(torch.tensor(float(own + 1), device=group.counts), dist.ReduceOp.MAX)
    for turn in range(int(turns)):
        if turn == own:
            yield mesh
        group.all_reduce(torch.zeros(1, device=group.counts))


def models_at_once(model_bytes: int | None, available: int) -> int:
    """Models that may be read at a time into so many bytes of host memory, at least one: a model takes half as much
    again while it is read, and the parts of those that were read before are one more."""
    return 1 if not model_bytes else max(1, int(available / model_bytes / 1.5) - 1)


def _mesh(group: ProcessGroup, config: Config) -> DeviceMesh:
    kind = group.device.type
    # Of a device that isn't in use a mesh takes LOCAL_RANK's, where a process may see one alone.
    torch.zeros(1, device=group.device)
    if offloads(config):
        return DeviceMesh.from_group(offloading_group(config), kind, mesh_dim_names=(ROWS,))
    mesh = init_device_mesh(kind, (group.replicas, group.tensor), mesh_dim_names=(ROWS, DIMENSION))
    if group.tensor > 1:
        mesh._flatten("all")  # a norm over both dimensions is then summed at once, and the same on every rank
    return mesh


def shard(
    module: CausalLMLoss,
    model: PreTrainedModel | PeftModel,
    layers: str | None,
    config: Config,
    mesh: DeviceMesh,
    device: torch.device,
) -> Shards:
    """Put this rank's part of a model in host memory on its device, one unit after the other; the rest is let go. With
    ``parallelism.cpu_offload`` a unit is on the device for as long as it is cut, and the part goes back.

    ``layers`` is the name of the list of decoder layers. No exchange between ranks. Raises TrntuneError for a model
    that can't be sharded.
    """
    names = _names(module, live_weights(model))
    units = decoder_layers(module.model, layers)
    check_shardable((name for name, p in module.named_parameters() if p.requires_grad), config.model.name)
    _check_units(module, units)
    if config.parallelism.tensor_parallel > 1:
        if not module.plain_head:
            raise TrntuneError(
                f"parallelism.tensor_parallel: the output head of {config.model.name} is more than one matrix, which "
                "isn't split; take parallelism=fsdp2"
            )
        split(module.model, units, mesh[DIMENSION])
        module.cross_entropy = fixed_split_cross_entropy if module.fixed_shapes else split_cross_entropy
    rows, offload = mesh[ROWS], _offload(config, device)
    try:
        for unit in units:
            to_device(unit, device)
            fully_shard(unit, mesh=rows, mp_policy=_precision(config), offload_policy=offload)
        to_device(module, device, but=units)
        root = fully_shard(module, mesh=rows, offload_policy=offload)
        for part in (*units, root):
            # gloo of torch 2.8 takes a mean of gradients for their sum, without a word: they are divided afterwards.
            cast(FSDPModule, part).set_force_sum_reduction_for_comms(True)
    except ValueError as error:
        raise TrntuneError(
            f"parallelism.sharding=fsdp: {in_first_line(error)}; take parallelism.sharding=ddp"
        ) from None
    return Shards(root, model, names)


def _precision(config: Config) -> MixedPrecisionPolicy:
    """Trained layers are gathered in bf16 under bf16: autograd would else keep the bf16 copies that autocast makes of
    all layers at once. Activations are left to autocast, as without FSDP, and gradients are summed in fp32."""
    if config.method.name == "full" and config.training.precision == "bf16":
        return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    return MixedPrecisionPolicy()


def _offload(config: Config, device: torch.device) -> OffloadPolicy:
    """Where parts lie. torch waits for the copies of gradients from pinned memory before it adds or updates."""
    return CPUOffloadPolicy(pin_memory=pins_memory(device.type)) if offloads(config) else OffloadPolicy()


def _names(module: nn.Module, weights: Tensors) -> dict[str, str]:
    """The names in ``module`` of tensors that share their memory."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    inner = {(tensor.data_ptr(), tensor.shape): name for name, tensor in tensors}
    return {name: inner[tensor.data_ptr(), tensor.shape] for name, tensor in weights.items()}


def _check_units(module: nn.Module, units: Iterable[nn.Module]) -> None:
    """Raise TrntuneError where units share a parameter: it would be whole in one of them and a part in the other."""
    owners: dict[int, int] = {}
    for number, unit in enumerate(units):
        for parameter in unit.parameters():
            if owners.setdefault(id(parameter), number) != number:
                raise TrntuneError(
                    f"parallelism.sharding=fsdp: layers of {type(module).__name__} share a parameter; take "
                    "parallelism.sharding=ddp"
                )
