"""Tensor parallelism with sequence parallelism, by DTensor: the ranks of a replica share each layer's matrices and,
between the layers, the positions of a row.

Matrices whose outputs are cut (queries, keys, values, gate, up) take whole rows of the batch, gathered once for all of
them; those whose inputs are cut (output projection, down) sum their products over the ranks and give each rank its
positions. Norms see a rank's own positions. Embedding and output head are cut along the vocabulary; a tied pair stays
one. Of an adapter one matrix is cut as its layer is, the other is on every rank. What is on every rank has partial
gradients, which FSDP2 sums when it takes them (trainer.engines.torch.sharding always comes after).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import PreTrainedModel

DIMENSION = "tensor"
"""the mesh's, of the ranks that share a replica"""

POSITIONS, WHOLE = Shard(1), Replicate()
_OUTPUTS_CUT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_INPUTS_CUT = ("self_attn.o_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


class _OnEveryRank(ParallelStyle):
    """Parameters are whole on every rank; inputs and outputs stay the DTensors that they are."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, _keep_whole)


def _keep_whole(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
    for own, parameter in module.named_parameters(recurse=False):
        tensor = DTensor.from_local(parameter.detach(), mesh, [WHOLE], run_check=False)
        module.register_parameter(own, nn.Parameter(tensor, parameter.requires_grad))


class SharedDropout(nn.Module):
    """Dropout of an adapter's input. The generators of a replica's ranks are equal: where each has the whole input
    they draw the same, and where they share its features each draws for all of them and takes what is for its own."""

    def __init__(self, p: float, parts: int, part: int) -> None:
        """``part``: of ``parts`` of the features, this rank's."""
        super().__init__()
        self.p, self.parts, self.part = p, parts, part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., features of this rank], a DTensor where it is whole."""
        if not self.training:
            return x
        own = x.to_local() if isinstance(x, DTensor) else x
        ones = own.new_ones(*own.shape[:-1], own.shape[-1] * self.parts)
        mask = nn.functional.dropout(ones, self.p).chunk(self.parts, dim=-1)[self.part]
        # By a tensor of its own: DTensor's random operations are not for every device.
        return x * (DTensor.from_local(mask, x.device_mesh, x.placements) if isinstance(x, DTensor) else mask)


def split(model: PreTrainedModel, layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Leave of ``model`` (Llama's or Qwen3's, adapters inside or not) this rank's part, in place. ``mesh`` has one
    dimension, DIMENSION. No exchange between ranks."""
    # A tensor is put together over one dimension and then the other, which torch tells as suboptimal.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    decoder: Any = model.get_decoder()
    units = list(layers)
    for layer in units:
        _share_dropout(layer, mesh)
        _parallelize(layer, mesh, _plan(layer))
    into = PrepareModuleInput(input_layouts=WHOLE, desired_input_layouts=POSITIONS, use_local_output=True)
    _parallelize(units[0], mesh, into)
    units[0].register_forward_pre_hook(_in_memory_of_their_own)
    _parallelize(decoder.norm, mesh, SequenceParallel())
    _split_ends(model, mesh)
    for name, parameter in model.named_parameters():  # SequenceParallel would train all that it touches
        parameter.requires_grad_(trained[name])


def _in_memory_of_their_own(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The first layer's positions are a part of the memory of all; the other layers' aren't, and what is compiled for
    one layer fits the others by strides too, also those of a single row."""
    hidden, *others = inputs
    return hidden.clone(memory_format=torch.contiguous_format), *others


def _parallelize(module: nn.Module, mesh: DeviceMesh, plan: Any) -> None:
    # Without a source rank each cuts its part of what it has read itself.
    parallelize_module(module, mesh, plan, src_data_rank=None)


def _plan(layer: nn.Module) -> dict[str, ParallelStyle]:
    there = dict(layer.named_modules())
    plan: dict[str, ParallelStyle] = {name: SequenceParallel() for name in _NORMS}
    # Norms of heads see all positions of a rank's own heads.
    plan.update(
        {name: SequenceParallel(sequence_dim=2, use_local_output=True) for name in _HEAD_NORMS if name in there}
    )
    plan["self_attn"] = PrepareModuleInput(
        input_kwarg_layouts={"hidden_states": POSITIONS}, desired_input_kwarg_layouts={"hidden_states": WHOLE}
    )
    plan["mlp"] = PrepareModuleInput(input_layouts=POSITIONS, desired_input_layouts=WHOLE)
    for name in _OUTPUTS_CUT:
        plan.update(_of_linear(name, there[name], ColwiseParallel(), _OnEveryRank(), ColwiseParallel()))
    for name in _INPUTS_CUT:
        summed = RowwiseParallel(output_layouts=POSITIONS, use_local_output=False)
        ours = SequenceParallel(use_local_output=True)
        plan.update(_of_linear(name, there[name], RowwiseParallel(output_layouts=POSITIONS), summed, ours))
    return plan


def _share_dropout(layer: nn.Module, mesh: DeviceMesh) -> None:
    whole, cut = (1, 0), (mesh.size(), mesh.get_local_rank())
    for name in (*_OUTPUTS_CUT, *_INPUTS_CUT):
        linear: Any = layer.get_submodule(name)
        for adapter, dropout in linear.lora_dropout.items() if isinstance(linear, LoraLayer) else ():
            if isinstance(dropout, nn.Dropout):
                linear.lora_dropout[adapter] = SharedDropout(dropout.p, *(cut if name in _INPUTS_CUT else whole))


def _of_linear(
    name: str, linear: nn.Module, base: ParallelStyle, first: ParallelStyle, second: ParallelStyle
) -> dict[str, ParallelStyle]:
    """``first`` and ``second``: of the adapter's matrices A and B, where it has them."""
    if not isinstance(linear, LoraLayer):
        return {name: base}
    [adapter] = linear.lora_A
    return {f"{name}.base_layer": base, f"{name}.lora_A.{adapter}": first, f"{name}.lora_B.{adapter}": second}


def _split_ends(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tied = head.weight is embedding.weight
    _parallelize(embedding, mesh, RowwiseParallel(input_layouts=WHOLE, output_layouts=WHOLE))
    if tied:
        head.weight = embedding.weight
    else:  # the loss multiplies by its weight, and nothing calls it
        _parallelize(head, mesh, ColwiseParallel())


def cut_along(tensor: torch.Tensor) -> int | None:
    """The axis of a parameter that the ranks of a replica share, None where each has all of it."""
    if not isinstance(tensor, DTensor):
        return None
    names = tensor.device_mesh.mesh_dim_names or ()
    placements = [p for name, p in zip(names, tensor.placements, strict=False) if name == DIMENSION]
    return next((placement.dim for placement in placements if isinstance(placement, Shard)), None)
