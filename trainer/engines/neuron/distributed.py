"""neuronx_distributed, on which optimum-neuron stands: where it puts this process, and its mends. Imports what exists
on Neuron machines alone."""

from __future__ import annotations

from typing import Any

import optimum.neuron.accelerate.optimizer as neuron_optimizer
import torch
import torch_xla.core.xla_model as xm
from neuronx_distributed.optimizer import zero_redundancy_optimizer
from neuronx_distributed.parallel_layers import grads, parallel_state

from trainer.engines.neuron import patches as neuron_patches
from trainer.engines.neuron.layout import Rank


def place(number: int) -> Rank:
    """Where process ``number``, which is this one, lies. Asked of neuronx_distributed, since tensor-parallel neighbours
    have numbers next to each other on most machines and sizes, and not on all: trn1 with 4 ranks has 0, 8, 16, 24."""
    return Rank(
        number,
        data=parallel_state.get_data_parallel_rank(),
        pipeline=parallel_state.get_pipeline_model_parallel_rank(),
        tensor=parallel_state.get_tensor_model_parallel_rank(),
    )


def mend() -> None:
    """Put the mends of trainer.engines.neuron.patches in place of the functions. Before a model is loaded."""
    neuron_optimizer.allreduce_sequence_parallel_gradients = _reduce_over_tensor_parallel
    parallel_state.arrange_kv_groups = _head_groups
    norm = neuron_patches.counted_once(grads.get_grad_norm)
    grads.get_grad_norm = zero_redundancy_optimizer.get_grad_norm = norm


def _reduce_over_tensor_parallel(optimizer: Any) -> None:
    groups = parallel_state.get_tensor_model_parallel_replica_groups()

    def reduce(gradient: torch.Tensor) -> None:
        xm.all_reduce(xm.REDUCE_SUM, [gradient], groups=groups, pin_layout=False)

    neuron_patches.reduce_sequence_parallel_gradients(optimizer, reduce)


def _head_groups(groups: int, tensor_parallel: int, copies: int, *others: Any) -> list[list[int]]:
    """In place of parallel_state.arrange_kv_groups, with its arguments."""
    return neuron_patches.head_groups(parallel_state.get_tensor_model_parallel_replica_groups(), copies)
