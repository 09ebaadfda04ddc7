"""optimum-neuron's models: loaded, with an adapter, counted. Imports what exists on Neuron machines alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch_xla.runtime as xr
from optimum.neuron.models.training import (
    NeuronModelForCausalLM,
    adapt_state_dict,
    create_parameter_metadata,
    specialize_transformation_specs_for_model,
)
from optimum.neuron.peft import get_peft_model
from peft.utils import set_peft_model_state_dict
from torch import nn

from launcher.architecture.family_table import FAMILIES, GATE_UP, QKV
from launcher.config.schema import Config
from launcher.errors import TrntuneError, in_first_line
from launcher.model_dir.weights import check_readable
from trainer.engines.neuron import pipeline
from trainer.engines.neuron.adapter import initial_adapter, share_first_half
from trainer.engines.neuron.patches import copies, is_split, mark_replicated, share_gradients
from trainer.models.adapt import check_faults, peft_config
from trainer.models.load import check_finite_weights, check_foreign_code, count_parameters
from trainer.models.size import ParameterCounts
from trainer.probes.model import on_meta

# What the kernel takes: neuronx_distributed/kernels/flash_attn.py.
FLASH_LENGTH = 2048


def attention(config: Config) -> str:
    """What is exact for the rows: the kernel is causal and takes no mask, so it can't keep documents of a row apart."""
    fits = not config.dataset.packing and config.training.max_length % FLASH_LENGTH == 0
    return "flash_attention_2" if fits and xr.device_type() == "NEURON" else "eager"


def load(model_dir: Path, config: Config, trn_config: Any) -> nn.Module:
    """This rank's part of the model in host memory, with its adapter for LoRA. Raises TrntuneError."""
    check_foreign_code(model_dir)
    check_readable(model_dir)
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    if config.parallelism.pipeline_parallel > 1:
        pipeline.prepare(config.dataset.packing)
    try:
        model: Any = NeuronModelForCausalLM.from_pretrained(
            model_dir, trn_config, torch_dtype=dtype, attn_implementation=attention(config)
        )
    except (OSError, ValueError, KeyError) as error:
        raise TrntuneError(f"{model_dir}: optimum-neuron can't load the model: {in_first_line(error)}") from None
    parallel, facts = config.parallelism, config.model.architecture
    if parallel.pipeline_parallel > 1 and config.training.gradient_checkpointing:
        pipeline.recompute(model)
    if parallel.sequence_parallel and facts is not None and FAMILIES[facts.family].whole_ends:
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        share_gradients(ends, parallel.tensor_parallel)
    own = model.parameters_for_current_stage  # those of other pipeline stages hold nothing
    check_finite_weights(((name, p) for name, p in model.named_parameters() if name in own), model_dir)
    if config.method.name == "full":
        mark_replicated(model)
        return model
    modules = check_faults(on_meta(model_dir), config.lora)
    adapted = get_peft_model(model, peft_config(config.lora, modules))
    _put_adapter(adapted, initial_adapter(model_dir, config))
    mark_replicated(adapted)
    return adapted


def _put_adapter(model: Any, adapter: dict[str, torch.Tensor]) -> None:
    """Split a whole adapter over the ranks, as NeuronPeftModel.load_adapter does."""
    adapter = share_first_half(adapter, GATE_UP)
    if any(getattr(module, "qkv_linear", False) for module in model.modules()):
        adapter = share_first_half(adapter, QKV)
    split = adapt_state_dict(model, adapter, {}, inplace=True, adapter_name="default")
    result: Any = set_peft_model_state_dict(model, split, adapter_name="default")
    if result.unexpected_keys:
        raise TrntuneError(f"the adapter doesn't fit optimum-neuron's layers: {result.unexpected_keys[0]}")


def count(model: nn.Module, config: Config, model_dir: Path) -> ParameterCounts:
    """Logical parameters: of layers that are split the whole, of key and value heads that are repeated one."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    total = count_parameters(on_meta(model_dir))[0]
    whole = sum(_logical(name, p, model, config) for name, p in trained)
    trainable = total if config.method.name == "full" else whole
    own: set[str] = model.parameters_for_current_stage  # type: ignore[assignment]
    return ParameterCounts(total, trainable, sum(p.numel() for name, p in trained if name in own))


def _logical(name: str, parameter: nn.Parameter, model: nn.Module, config: Config) -> int:
    if not is_split(parameter):
        return parameter.numel()
    return parameter.numel() * config.parallelism.tensor_parallel // copies(name, model)


def metadata(model: Any) -> dict[str, Any]:
    """How this pipeline stage lies over the tensor-parallel ranks, as optimum-neuron writes it beside its shards."""
    model = getattr(model, "original_torch_module", model)  # of a model in stages
    specialize_transformation_specs_for_model(model)
    found: dict[str, Any] = create_parameter_metadata(model)
    return found
