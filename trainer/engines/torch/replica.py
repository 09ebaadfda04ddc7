"""One process's copy of the model, and what computes with it: what training and evaluation take of the engine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedModel

from launcher.architecture.attention_pairs import Extents
from launcher.config.schema import Config
from trainer import device
from trainer.data.collate import Collator
from trainer.engines.state import Tensors
from trainer.engines.torch.process_group import ProcessGroup
from trainer.models.causal_lm import CausalLMLoss


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

    def autocast(self) -> AbstractContextManager[None]:
        """Inside, products are computed in training.precision."""
        return device.autocast(self.group.device, self.config.training.precision)
