"""A model in pipeline stages: neuronx_distributed's NxDPPModel runs the micro batches of a step through them by itself,
forward and backward. Imports what exists on Neuron machines alone.

optimum-neuron gives the stages token ids, an attention mask and labels, takes the mean of each micro batch's loss, and
forgets gradient checkpointing. ``prepare`` has its models take what the other layouts give them, and sum; ``recompute``
has the layers keep their inputs alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import optimum.neuron.models.training.llama.modeling_llama as modeling_llama
import optimum.neuron.models.training.qwen3.modeling_qwen3 as modeling_qwen3
import torch
from optimum.neuron.models.training.loss_utils import ForCausalLMLoss
from optimum.neuron.models.training.training_utils import checkpoint_with_kwargs

from trainer.engines.neuron import generators
from trainer.engines.neuron.batch import attention_bias
from trainer.engines.neuron.part import Part


def prepare(packing: bool) -> None:
    """Before a model is loaded: its stages are found by following its inputs through it."""
    names = ["input_ids", "labels", *(["attention_mask", "position_ids"] if packing else [])]
    for model in (modeling_llama.LlamaForCausalLM, modeling_qwen3.Qwen3ForCausalLM):
        model.PIPELINE_INPUT_NAMES = names
    modeling_llama.ForCausalLMLoss = partial(ForCausalLMLoss, reduction="sum")
    # From stage to stage go the numbers of documents [B, L]; each layer makes the mask [B, 1, L, L] of them.
    modeling_llama.create_causal_mask = _as_given
    modeling_llama.eager_attention_forward = modeling_qwen3.eager_attention_forward = partial(_attend, _ATTEND)


_ATTEND = modeling_llama.eager_attention_forward


def _as_given(attention_mask: torch.Tensor | None = None, **others: Any) -> torch.Tensor | None:
    return attention_mask


def _attend(attend: Any, module: Any, query: Any, key: Any, value: Any, numbers: Any, *args: Any, **kwargs: Any) -> Any:
    mask = None if numbers is None else attention_bias(numbers, query.dtype)
    return attend(module, query, key, value, mask, *args, **kwargs)


def recompute(model: Any) -> None:
    """Before stages are made of ``model``: keep of each decoder layer its inputs for the backward pass."""
    for layer in model.modules():
        if isinstance(layer, model.PIPELINE_TRANSFORMER_LAYER_CLS):
            layer.forward = partial(_recomputed, layer.forward)
    # A layer none of whose inputs needs a gradient would get none itself: under LoRA the embedding has none.
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    return checkpoint_with_kwargs(forward, *args, **kwargs) if torch.is_grad_enabled() else forward(*args, **kwargs)


def inputs(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The micro batches of trainer.engines.neuron.batch.host_batch as one, on the host: stages take them apart again,
    and move what they need to the device."""
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    if "documents" in whole:
        whole["attention_mask"] = whole.pop("documents")
    return whole


def run(part: Part, model: Any, batch: dict[str, torch.Tensor], device: Any, training: bool) -> torch.Tensor:
    """Summed negative log-likelihood (nats) of the labels of ``batch``, on the last stage; 0 on the others.

    In training the gradients are added to the parameters', as of the mean over the micro batches.
    """
    part.note_shapes(batch)
    if not model.shape_traced:
        # The first run of a process computes one micro batch to see the shapes between stages. It draws dropout, which
        # a run that goes on would draw at another step than one that was never ended.
        state = generators.capture()
        model._prepare_run(batch)
        generators.restore(state)
    mean = (model.run_train if training else model.run_eval)(**batch)
    return torch.zeros((), device=device) if mean is None else mean * part.micro_batches
