"""The module that is trained: a causal language model whose forward pass returns the summed loss of a batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from trainer.attention import segments_of
from trainer.loss import dense_cross_entropy, linear_cross_entropy

# What the module takes of a collated batch.
MODEL_INPUTS = ("input_ids", "position_ids", "documents", "targets")

# Settings of a transformers config that change the logits after the head: the chunked loss doesn't apply them.
_LOGIT_SETTINGS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def has_plain_head(model: PreTrainedModel) -> bool:
    """True when the logits are one matrix product of the decoder's output: linear, no bias, nothing applied after."""
    head = model.get_output_embeddings()
    changed = any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in _LOGIT_SETTINGS)
    return type(head) is nn.Linear and head.bias is None and not changed


class CausalLMLoss(nn.Module):
    """Wraps a model, with or without adapters, for training on packed rows."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        # peft puts its layers into the base model, so calling the base model's decoder runs them too.
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.model = cast(PreTrainedModel, base)
        self.plain_head = has_plain_head(self.model)

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, documents: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Summed negative log-likelihood (nats) of ``targets`` [B, L], which are already shifted.

        ``input_ids`` and ``position_ids`` are [B, L]; ``documents`` is [n, 3] (row, start, end).
        """
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "segments": segments_of(documents, *input_ids.shape),
            "use_cache": False,
        }
        if not self.plain_head:
            return dense_cross_entropy(self.model(**inputs).logits, targets)
        hidden = self.model.get_decoder()(**inputs).last_hidden_state
        return linear_cross_entropy(hidden, self.model.get_output_embeddings().weight, targets)
