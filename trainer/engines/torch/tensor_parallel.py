"""Tensor parallelism with sequence parallelism, by DTensor: the ranks of a replica share each layer's matrices and,
between the layers, the positions of a row.

Matrices whose outputs are cut (queries, keys, values, gate, up) take whole rows of the batch, gathered once for all of
them; those whose inputs are cut (output projection, down) sum their products over the ranks and give each rank its
positions. Norms see a rank's own positions. Embedding and output head are cut along the vocabulary; a tied pair stays
one. Of an adapter one matrix is cut as its layer is, the other is on every rank. What is on every rank has partial
gradients, which FSDP2 sums when it takes them (trainer.engines.torch.sharding always comes after).
"""

from __future__ import annotations

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


class PartOfDropout(nn.Module):
    """Dropout of an input whose features the ranks of a replica share. Their generators are equal, as they must be
    for inputs that each rank has whole: so each draws for all features, and takes what is for its own."""

    def __init__(self, p: float, mesh: DeviceMesh) -> None:
        super().__init__()
        self.p, self.ranks, self.rank = p, mesh.size(), mesh.get_local_rank()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., features of this rank]"""
        if not self.training:
            return x
        ones = x.new_ones(*x.shape[:-1], x.shape[-1] * self.ranks)
        return x * nn.functional.dropout(ones, self.p).chunk(self.ranks, dim=-1)[self.rank]


def split(model: PreTrainedModel, layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Leave of ``model`` (Llama's or Qwen3's, adapters inside or not) this rank's part, in place. ``mesh`` has one
    dimension, DIMENSION. No exchange between ranks."""
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    decoder: Any = model.get_decoder()
    units = list(layers)
    for layer in units:
        _split_dropout(layer, mesh)
        _parallelize(layer, mesh, _plan(layer))
    into = PrepareModuleInput(input_layouts=WHOLE, desired_input_layouts=POSITIONS, use_local_output=True)
    _parallelize(units[0], mesh, into)
    _parallelize(decoder.norm, mesh, SequenceParallel())
    _split_ends(model, mesh)
    for name, parameter in model.named_parameters():  # SequenceParallel would train all that it touches
        parameter.requires_grad_(trained[name])


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


def _split_dropout(layer: nn.Module, mesh: DeviceMesh) -> None:
    linears = [layer.get_submodule(name) for name in _INPUTS_CUT]
    for dropouts in (linear.lora_dropout for linear in linears if isinstance(linear, LoraLayer)):
        for adapter, dropout in dropouts.items():
            if isinstance(dropout, nn.Dropout):
                dropouts[adapter] = PartOfDropout(dropout.p, mesh)


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
