"""One process's copy of the model, and what computes with it: what training and evaluation take of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedModel

from launcher.architecture.attention_pairs import Extents
from launcher.config.schema import Config, compiles_layers
from trainer import device
from trainer.checkpoints.parts import Layout, part_file
from trainer.checkpoints.state import RestoredState
from trainer.checkpoints.writer import not_finite
from trainer.data.collate import Collator
from trainer.engines.state import Tensors
from trainer.engines.torch.parts import Regrouped, local
from trainer.engines.torch.process_group import ProcessGroup
from trainer.engines.torch.sharding import Shards
from trainer.engines.torch.state import live_weights
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
    base_config: Mapping[str, Any]
    """config.json of the model that was loaded"""
    shards: Shards | None = None
    """of a model that lies over the ranks"""
    updated: bool = False
    """the weights are no longer the base's"""

    @property
    def one_shape(self) -> bool:
        """Whether a batch of another shape would be compiled anew."""
        return device.has_fixed_shapes(self.group.device.type) or compiles_layers(self.config)

    def trainable(self) -> Tensors:
        """The trained parameters by name in ``module``, tied ones once: this rank's part of them. Not copies."""
        return {name: local(p) for name, p in self.module.named_parameters() if p.requires_grad}

    def weights(self) -> Tensors:
        """What training changes, by the names that it is saved by: this rank's part of it. Not copies."""
        return live_weights(self.model) if self.shards is None else self.shards.weights()

    def inputs(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """What the module takes of a collated batch, on the device. Documents are numbers where the device would wait
        and compile for reading them: FSDP takes each tensor there."""
        place = self.group.device
        given: dict[str, Any] = {name: batch[name] for name in MODEL_INPUTS}
        if device.has_fixed_shapes(place.type):
            given["documents"] = batch["documents"].tolist()
        return {name: value.to(place) if isinstance(value, torch.Tensor) else value for name, value in given.items()}

    def autocast(self) -> AbstractContextManager[None]:
        """Inside, products are computed in training.precision."""
        return device.autocast(self.group.device, self.config.training.precision)

    def file(self, name: str) -> str:
        """The file of a checkpoint that has this rank's part of what ``name`` is for."""
        return name if self.shards is None else part_file(name, self.group.rank, self.group.ranks)

    def layout(self) -> Layout:
        """How weights and moments lie over the ranks' files."""
        if self.shards is None:
            return Layout()
        group, shards = self.group, self.shards
        return Layout(group.ranks, group.tensor, shards.whole_names(), shards.cuts())

    def regrouped(self, stored: RestoredState) -> Regrouped:
        """A checkpoint as this rank goes on from it, whichever ranks wrote it."""
        return Regrouped(stored, 0 if self.shards is None else self.group.rank, self.layout())

    def not_finite(self) -> str | None:
        """The name of a tensor that training changes and that has an infinite number or a NaN in it, or None. Of a
        model in parts all ranks call it, and get the same answer."""
        weights = self.weights()
        found = not_finite(weights)
        if self.shards is None:
            return found
        names = list(weights)
        index = torch.tensor(len(names) if found is None else names.index(found), device=self.group.counts)
        first = int(self.group.all_reduce(index, dist.ReduceOp.MIN))
        return None if first == len(names) else names[first]

    @contextmanager
    def without_gradients(self) -> Iterator[None]:
        """Inside, forward passes keep nothing for a backward pass."""
        if self.shards is None:
            with torch.inference_mode():
                yield
            return
        # What FSDP gathers parameters into is made once: made in inference mode it could not be trained.
        with torch.no_grad():
            yield
        self.shards.reshard()
