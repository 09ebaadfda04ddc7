"""peft's adapter on a real model: launcher.architecture.adapters settles what it will be, and what it became is held
against that.

Where peft would do something else in silence, training doesn't begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import trainer.lean_peft  # noqa: F401 (before an adapter is put on a model)
from launcher.architecture.adapter_faults import faults
from launcher.architecture.adapters import MAX_NAMES, Adapted, Modules, Trained, last_parts, peft_targets, trained
from launcher.config.schema import LoraConfig
from launcher.errors import TrntuneError, first
from trainer.libraries.peft_versions import is_bias, taken_for_experts
from trainer.libraries.transformers_versions import parts_of_parameters

# peft 0.17 refuses an adapter on these (tuners_utils._check_lora_target_modules_mamba): the kernels of these families
# read the weight without calling the layer.
_STATE_SPACE = ("falcon_h1", "mamba", "mamba2", "falcon_mamba")
_READ_BY_KERNELS = ("out_proj", "conv1d")
_KERNELS = "{} gets no adapter, since this family's kernels read its weight without calling it"
_ALL_EXPERTS = "{} is one parameter of all experts, which gets no adapter here"
_ONE_EXPERT = "{} of each expert is part of one parameter of all experts here, which gets no adapter"
_TAKEN = "{} gets no adapter, since peft takes every layer of that name for the experts', which are one parameter here"
# Parts of the names of parameters that peft adds to a model.
_ADDED = ("lora_", ".modules_to_save.", ".trainable_tokens_delta.")


def is_added(name: str) -> bool:
    """True for the name of a parameter that isn't the base model's: an adapter's, or a copy that is trained."""
    return any(part in name for part in _ADDED)


def decoder_layers(model: PreTrainedModel, name: str | None) -> list[nn.Module]:
    """The layers of the list of that name (``Modules.layers``), none of a family without one."""
    return [] if name is None else list(model.get_submodule(name).children())


def modules_of(model: PreTrainedModel) -> Modules:
    """The names of a model's modules, before peft changes it; it may be on the meta device."""
    named = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if name]
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    name_of = {id(module): name for name, module in named}
    layers, count = _decoder_layers(model)
    kernels = _READ_BY_KERNELS if getattr(model.config, "model_type", None) in _STATE_SPACE else ()
    candidates = [
        name
        for name, module in named
        if is_linear(module) and module is not head and name.rpartition(".")[2] not in kernels
    ]
    taken = taken_for_experts(model, last_parts(candidates))
    return Modules(
        names=tuple(name for name, _ in named),
        linear=tuple(name for name in candidates if name.rpartition(".")[2] not in taken),
        leaves=frozenset(name for name, module in named if _is_leaf(module)),
        biases=frozenset(name for name, _ in model.named_parameters() if is_bias(name)),
        layers=layers,
        count=count,
        embedding=name_of.get(id(embedding), ""),
        head=name_of.get(id(head), ""),
        vocabulary=len(embedding.weight),
        tied=isinstance(head, nn.Linear) and head.weight is embedding.weight,
        no_tokens=_no_tokens(embedding, head),
        refused=(*((name, _KERNELS.format(name)) for name in kernels), *_experts(model, taken)),
    )


def _decoder_layers(model: PreTrainedModel) -> tuple[str | None, int]:
    """Name and length of the list that has as many entries as the model has layers: the outermost one."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return (min(lists, key=lambda name: name.count(".")), int(count or 0)) if lists else (None, 0)


def _is_leaf(module: nn.Module) -> bool:
    """A linear layer, an embedding, or a norm: called with one tensor, and without modules with weights inside."""
    own = list(module.parameters(recurse=False))
    if not own or len(own) != len(list(module.parameters())):
        return False
    return isinstance(module, nn.Linear | nn.Embedding | Conv1D) or all(parameter.dim() == 1 for parameter in own)


def _no_tokens(embedding: nn.Module, head: Any) -> str:
    """peft looks rows up by itself, and multiplies by a tied head's matrix alone [tuners/trainable_tokens/layer.py]."""
    kind = type(embedding)
    if not isinstance(embedding, nn.Embedding) or kind.forward is not nn.Embedding.forward:
        return f"{kind.__name__} does more than look rows up, which peft would leave out"
    tied = isinstance(head, nn.Linear) and head.weight is embedding.weight
    return "peft would leave the output head's bias out" if tied and head.bias is not None else ""


def is_packed(module: nn.Module) -> bool:
    """True for a linear layer whose own weight bitsandbytes holds in 4 bit; peft's layer around it shows it too."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return getattr(weight, "quant_state", None) is not None


def size(parameter: torch.Tensor) -> int:
    """How many numbers a parameter stands for: packed, it has fewer entries."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def is_linear(module: nn.Module) -> bool:
    """True for a layer that gives the product with its weight: some routers are Linear by class, and give more."""
    if is_packed(module):
        return True
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    width = module.in_features if isinstance(module, nn.Linear) else module.nx
    rows = module.weight.shape[0] if isinstance(module, nn.Linear) else module.weight.shape[1]
    try:
        with torch.no_grad():
            given = module(module.weight.new_zeros(1, width))
    except Exception:  # whatever a layer raises that wants other inputs, such as one of several groups
        return False
    return torch.is_tensor(given) and tuple(given.shape) == (1, rows)


def lora_targets(model: PreTrainedModel) -> list[str]:
    """What all-linear stands for: the last part of the names of the layers that can get an adapter, sorted."""
    return sorted(last_parts(modules_of(model).linear))


def _experts(model: PreTrainedModel, taken: Sequence[str]) -> list[tuple[str, str]]:
    """What stands for experts by the last parts of its names, and why it gets no adapter: parameters that hold all of
    them, the layers that such a one is made of, and ``taken``, layers that peft takes for those."""
    whole = {name.rpartition(".")[2] for name, parameter in model.named_parameters() if parameter.dim() == 3}
    parts = parts_of_parameters(model) - {*taken, *whole}
    return [
        *((name, _ALL_EXPERTS.format(name)) for name in sorted(whole - {*taken})),
        *((name, _ONE_EXPERT.format(name)) for name in sorted(parts)),
        *((name, _TAKEN.format(name)) for name in taken),
    ]


def check_faults(model: PreTrainedModel, lora: LoraConfig) -> Modules:
    """The model's modules. Raises TrntuneError, in one line, where the adapter would be another than asked for."""
    modules = modules_of(model)
    for problem in faults(lora, modules, str(getattr(model.config, "model_type", type(model).__name__))):
        raise TrntuneError(str(problem))
    return modules


def peft_config(lora: LoraConfig, modules: Modules | None = None) -> PeftLoraConfig:
    """The adapter in peft's terms. ``modules``: of the model, which all-linear and layers_to_transform need."""
    targets, layers = peft_targets(lora, modules)
    pattern = modules.layers.rpartition(".")[2] if layers and modules is not None and modules.layers else None
    start: Any = True if lora.init_lora_weights == "true" else lora.init_lora_weights
    bias: Any = lora.bias  # peft has its words as literals
    return PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=list(lora.exclude_modules) if lora.exclude_modules else None,
        layers_to_transform=layers,
        # Without it peft takes the last number in a name, which is an expert's in a mixture of experts.
        layers_pattern=pattern,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        init_lora_weights=start,
        bias=bias,
        modules_to_save=list(lora.modules_to_save) if lora.modules_to_save else None,
        trainable_token_indices=list(lora.trainable_token_indices) if lora.trainable_token_indices else None,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        task_type="CAUSAL_LM",
    )


def check_adapted_as_planned(adapted: PeftModel, lora: LoraConfig, modules: Modules) -> None:
    """Raise TrntuneError unless peft adapted, copied and wrapped exactly what ``adapters.trained`` says."""
    expected, found = trained(lora, modules), _found(adapted)
    differing = sorted(set(expected.adapters) ^ set(found.adapters), key=lambda adapter: adapter.name)
    names = [adapter.name for adapter in differing] or sorted(set(expected.saved) ^ set(found.saved))
    if names:
        shown = first(names, MAX_NAMES)
        raise TrntuneError(f"lora: peft would train {shown} otherwise than the settings say: name the layers in full")
    if expected.tokens != found.tokens:
        raise TrntuneError(f"lora.trainable_token_indices: peft would train the rows {list(found.tokens)}")
    base: Any = adapted.get_base_model()
    head, embedding = base.get_output_embeddings(), plain(base.get_input_embeddings())
    tied = head is not None and plain(head).weight is embedding.weight
    if expected.tokens and tied and not isinstance(head, TrainableTokensWrapper):
        raise TrntuneError(
            "lora.trainable_token_indices: the output head is tied to the embedding, and peft doesn't see it: rows "
            "trained in one would stay as they are in the other; leave it out"
        )


def _found(adapted: PeftModel) -> Trained:
    """What peft made of a model."""
    base = adapted.get_base_model()
    modules = [(name, module) for name, module in base.named_modules() if ".modules_to_save." not in name]
    layers = [(name, module) for name, module in modules if isinstance(module, LoraLayer)]
    tokens = [module.token_adapter for _, module in modules if isinstance(module, TrainableTokensWrapper)]
    return Trained(
        tuple(Adapted(name, layer.r["default"], layer.lora_alpha["default"]) for name, layer in layers),
        tuple(name for name, module in modules if isinstance(module, ModulesToSaveWrapper)),
        tuple(tokens[0].token_indices["default"]) if tokens else (),
    )


def plain(module: Any) -> Any:
    """The base's own module inside one that peft has wrapped to train it or its rows."""
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module


def train_in_fp32(model: nn.Module) -> None:
    """Make what is trained fp32, as peft makes its own matrices: copies of a bf16 base's modules would lose small
    updates."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def left_out(model: PeftModel, saved: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Trained tensors that are not among those that peft saves, under the names by which it reads them.

    With bias=lora_only peft 0.17 looks for a layer's bias where there was one before the layer got its adapter
    [utils/save_and_load.py: get_peft_model_state_dict], and finds none.
    """
    places = {tensor.data_ptr() for tensor in saved.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in places:
            yield name.replace(".default", ""), parameter.detach()
