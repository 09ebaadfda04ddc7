"""Where peft 0.17 and its newer releases differ in what this project leans on: nothing else asks for peft's version.

docs/dependencies.md has the list of all that is relied on, and which test holds it.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import peft
from torch import nn
from transformers import PreTrainedModel

from trainer.libraries.transformers_versions import MAJOR as TRANSFORMERS

# transformers 5 says of its own property, to whoever trains, that peft should ask for another.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

RELEASE = tuple(int(part) for part in peft.__version__.split(".")[:2])


def trains_rows_of(module: nn.Module) -> bool:
    """Whether trainable_token_indices can have rows of this layer: an embedding's in 0.17, since 0.18 a linear layer's
    too [tuners/trainable_tokens/layer.py: update_layer]."""
    return isinstance(module, nn.Embedding) or (RELEASE >= (0, 18) and isinstance(module, nn.Linear))


def is_bias(name: str) -> bool:
    """Whether bias=all trains this parameter: in 0.17 whatever has "bias" in its name, in 0.21 what is called so: of
    parameters of all experts such as gate_up_proj_bias then none [_mark_only_adapters_as_trainable]."""
    return "bias" in name if RELEASE < (0, 21) else name.rpartition(".")[2] == "bias"


SAVES_BIASES_OF_ADAPTED_LAYERS = RELEASE >= (0, 21)
"""Whether bias=lora_only is saved by peft: 0.17 looks for a layer's bias where it was before the layer got its adapter
[get_peft_model_state_dict], 0.21 where it is [_get_learnable_bias_state_dict]."""


def taken_for_experts(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Of these targets those that peft takes for layers of single experts: it puts an adapter on the one parameter that
    transformers 5 has for all of them, and none on the layers that are called so, such as a dense MLP's
    [utils/transformers_weight_conversion.py]."""
    if TRANSFORMERS < 5 or RELEASE < (0, 19):
        return []
    convert: Any = import_module("peft.utils.transformers_weight_conversion").convert_peft_config_for_transformers
    return [name for name in names if _is_converted(name, model, convert)]


def _is_converted(name: str, model: PreTrainedModel, convert: Any) -> bool:
    config = peft.LoraConfig(target_modules=[name])
    try:
        convert(config, model=model, conversions=None)
    except ValueError:  # of a name that peft takes only with its partner: gate_proj with up_proj
        return True
    return bool(config.target_parameters)
