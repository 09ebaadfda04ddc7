"""The module that is trained: a causal language model whose forward pass returns the summed loss of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from launcher.errors import TrntuneError
from trainer.data.tokenize import IGNORE
from trainer.families.experts import router_coefficient
from trainer.families.proof import accepted, decoder_of
from trainer.families.way import Way
from trainer.models.adapt import plain
from trainer.models.attention import segments_of
from trainer.models.loss import as_autocast_multiplies, dense_cross_entropy, fixed_cross_entropy, linear_cross_entropy
from trainer.models.reach import Segments, packed_rows

Bounds = Sequence[Sequence[int]]
"""documents of a batch: row, first position, position after the last"""

# What the module takes of a collated batch.
MODEL_INPUTS = ("input_ids", "position_ids", "documents", "targets")

# Settings of a transformers config that change the logits after the head: the chunked loss doesn't apply them.
_LOGIT_SETTINGS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def has_plain_head(model: PreTrainedModel) -> bool:
    """True when the logits are one matrix product of the decoder's output: linear, no bias, nothing applied after."""
    head = plain(model.get_output_embeddings())
    changed = any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in _LOGIT_SETTINGS)
    return type(head) is nn.Linear and head.bias is None and not changed


# What a model is trained by where nobody has looked: Llama's way.
PACKED = Way(packed=None, alone=None, attention="sdpa", plain_head=True)


class CausalLMLoss(nn.Module):
    """Wraps a model, with or without adapters, for training on rows of documents.

    With ``way.packed`` None a row may hold several of them: the model's attention is trainer.models.attention's. Else
    it is transformers' own, and a row holds one document with padding behind it.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, way: Way = PACKED, fixed_shapes: bool = False) -> None:
        """``fixed_shapes``: nothing that is computed depends on where documents end or which positions have targets; a
        row then holds one document, which attention takes for the whole row."""
        super().__init__()
        self.cross_entropy = fixed_cross_entropy if fixed_shapes else linear_cross_entropy
        # peft puts its layers into the base model, so calling the base model's decoder runs them too.
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.model = cast(PreTrainedModel, base)
        self.packs = way.packed is None
        self.fixed_shapes = fixed_shapes
        self.plain_head = way.plain_head and has_plain_head(self.model)
        self.router_coefficient = router_coefficient(self.model)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        documents: torch.Tensor | Bounds,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Summed negative log-likelihood (nats) of ``targets`` [B, L], which are already shifted.

        ``input_ids`` and ``position_ids`` are [B, L]; ``documents`` is [n, 3] (row, start, end), as numbers where a
        tensor would be moved to a device that compiles for reading it. While it trains, a mixture of experts whose
        configuration has output_router_logits adds its router's auxiliary loss, for each target. Raises TrntuneError
        for several documents in a row of a model that can't keep them apart.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        bounds: Bounds = documents.tolist() if isinstance(documents, torch.Tensor) else documents
        if (not self.packs or self.fixed_shapes) and any(start for _, start, _ in bounds):
            raise TrntuneError(f"{type(self.model).__name__} can't keep documents of a row apart")
        if not self.packs:
            return self._loss(inputs, bounds, targets)
        rows, length = input_ids.shape
        # What follows a document in its row sees it, and is not seen by it: attention is causal.
        whole = Segments([(row, 0, length, True) for row in range(rows)])
        segments = whole if self.fixed_shapes else segments_of(bounds, rows, length)
        # Without a mask transformers would look for the documents itself, and make one that keeps them apart.
        everything = torch.ones_like(input_ids)
        inputs.update(position_ids=position_ids, attention_mask=everything, segments=segments)
        with packed_rows(segments):
            return self._loss(inputs, bounds, targets)

    def _loss(self, inputs: dict[str, Any], documents: Bounds, targets: torch.Tensor) -> torch.Tensor:
        if self.training and self.router_coefficient:
            return self._with_router_loss(inputs, documents, targets)
        decoder = decoder_of(self.model)
        if not self.plain_head or decoder is None:
            return dense_cross_entropy(self.model(**accepted(self.model, inputs)).logits, targets)
        hidden = decoder(**accepted(decoder, inputs)).last_hidden_state
        return self.cross_entropy(as_autocast_multiplies(hidden), self.model.get_output_embeddings().weight, targets)

    def _with_router_loss(self, inputs: dict[str, Any], documents: Bounds, targets: torch.Tensor) -> torch.Tensor:
        """The same, and the auxiliary loss of this batch as transformers computes it: over its tokens, without the
        padding. It is a mean, so it is counted once a target: the step's loss, divided by its targets, has it once."""
        mask = torch.zeros_like(targets)
        for row, start, end in documents:
            mask[row, start:end] = 1
        inputs = {**inputs, "attention_mask": mask, "output_router_logits": True}
        outputs = self.model(**accepted(self.model, inputs))
        loss = dense_cross_entropy(outputs.logits, targets)
        auxiliary = getattr(outputs, "aux_loss", None)
        if not torch.is_tensor(auxiliary) or not len(documents):
            return loss
        return loss + self.router_coefficient * auxiliary * (targets != IGNORE).sum()
