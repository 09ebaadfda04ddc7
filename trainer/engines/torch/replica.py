"""One process's copy of the model, and what computes with it: what training and evaluation take of the engine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from launcher.architecture.attention_pairs import Extents
from launcher.config.schema import Config
from trainer import device
from trainer.data.collate import Collator
from trainer.engines.state import Tensors
from trainer.engines.torch.process_group import ProcessGroup
from trainer.models.causal_lm import MODEL_INPUTS, CausalLMLoss


@dataclass
class Replica:
    """A loaded model on its device."""

    config: Config
    group: ProcessGroup
    model: PreTrainedModel | PeftModel
    module: CausalLMLoss
    """``model`` with our loss"""
    collator: Collator
    extents: Extents
    """how far each layer's attention looks"""
    updated: bool = False
    """the weights are no longer the base's"""

    def trainable(self) -> Tensors:
        """The trained parameters by name in ``module``, tied ones once. Not copies."""
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    def inputs(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the module takes of a collated batch, on the device. Where documents are looked at as numbers, and the
        device would wait and compile for each of them, they stay on the host."""
        place = self.group.device
        kept = ("documents",) if device.has_fixed_shapes(place.type) else ()
        return {name: batch[name] if name in kept else batch[name].to(place) for name in MODEL_INPUTS}

    def autocast(self) -> AbstractContextManager[None]:
        """Inside, products are computed in training.precision."""
        return device.autocast(self.group.device, self.config.training.precision)
