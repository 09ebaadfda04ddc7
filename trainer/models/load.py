"""Loading a model directory and putting the method on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from launcher.errors import TrntuneError, nearest
from launcher.schema import Config, LoraConfig

logging.set_verbosity_error()
logging.disable_progress_bar()


def load_tokenizer(model_dir: Path, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer of a model directory; where none is named, padding is the end-of-sequence token."""
    refuse_code_of_others(model_dir)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, use_fast=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise TrntuneError(f"{model_dir}: its tokenizer can't be loaded: {_first_line(error)}") from None
    if not tokenizer.is_fast:
        raise TrntuneError(f"{model_dir}: there is no fast tokenizer (tokenizer.json); save one with transformers")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def run_tokenizer(config: Config, model_dir: Path) -> Any:
    """The tokenizer of a run: the model's, with dataset.chat_template where that is given. It is saved beside what is
    trained, so that answers are asked for by the same template."""
    tokenizer = load_tokenizer(model_dir, config.model.trust_remote_code)
    if config.dataset.chat_template is not None:
        try:
            tokenizer.chat_template = Path(config.dataset.chat_template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TrntuneError(
                f"dataset.chat_template={config.dataset.chat_template}: can't be read: {_first_line(error)}"
            ) from None
    return tokenizer


def weight_dtype(config: Config) -> torch.dtype:
    """bf16 for a frozen base under bf16; trained weights stay fp32, and bf16 is then a matter of autocast."""
    frozen = config.method.name == "lora"
    return torch.bfloat16 if config.training.precision == "bf16" and frozen else torch.float32


def load_model(model_dir: Path, config: Config, attn_implementation: str) -> PreTrainedModel:
    """The model on the CPU. Raises TrntuneError for what transformers can't read and for another parameter count."""
    refuse_code_of_others(model_dir)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=weight_dtype(config),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=config.model.trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        raise TrntuneError(f"{model_dir}: the model can't be loaded: {_first_line(error)}") from None
    found = count_parameters(model)[0]
    if config.model.parameters is not None and found != config.model.parameters:
        raise TrntuneError(
            f"{model_dir} has {found:,} parameters, not {config.model.parameters:,} as model.parameters says"
        )
    return model


def refuse_code_of_others(model_dir: Path) -> None:
    """Raise TrntuneError for a model that names code of another repository, whose revision nobody has pinned."""
    for name in ("config.json", "tokenizer_config.json"):
        file = model_dir / name
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        entries = content.get("auto_map") or {}
        for entry in entries.values() if isinstance(entries, dict) else ():
            for reference in entry if isinstance(entry, list) else [entry]:
                if isinstance(reference, str) and "--" in reference:
                    raise TrntuneError(f"{file}: it names code of another repository ({reference}), which isn't run")


def apply_method(model: PreTrainedModel, config: Config) -> PreTrainedModel | PeftModel:
    """For LoRA the model with adapters initialized by ``config.seed``, its base frozen; for full the model itself."""
    if config.method.name == "full":
        return model
    lora = config.lora
    check_targets(model, lora.target_modules)
    torch.manual_seed(config.seed)
    adapter = peft_config(lora)
    adapter.base_model_name_or_path = config.model.hub_id or str(model.name_or_path)
    try:
        adapted = get_peft_model(model, adapter)
    except (ValueError, TypeError) as error:  # layers that peft can't adapt in this family
        raise TrntuneError(f"lora.target_modules: {_first_line(error)}") from None
    assert isinstance(adapted, PeftModel)
    return adapted


def peft_config(lora: LoraConfig) -> PeftLoraConfig:
    """The adapter in peft's terms."""
    return PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        task_type="CAUSAL_LM",
    )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Distinct parameters of the base model, and distinct trainable ones. ``parameters()`` gives tied ones once."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    base = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    return base, trainable


def check_targets(model: PreTrainedModel, targets: list[str]) -> None:
    """Raise TrntuneError for a target without a layer: peft takes it in silence as long as another one matches."""
    head = model.get_output_embeddings()
    linear = {name for name, module in model.named_modules() if is_linear(module) and module is not head}
    leaves = sorted({name.rpartition(".")[2] for name in linear})
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            close = nearest(target, leaves)
            hint = f", nearest is {close}" if close else ""
            if any(name.rpartition(".")[2] == target and p.dim() == 3 for name, p in model.named_parameters()):
                hint = f"; {target} is one parameter of all experts, which gets no adapter here"
            raise TrntuneError(
                f"lora.target_modules: the model has no linear layer {target!r} (there are: {', '.join(leaves)}{hint})"
            )


def is_linear(module: nn.Module) -> bool:
    """True for a layer that gives the product with its weight: some routers are Linear by class, and give more."""
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    width = module.in_features if isinstance(module, nn.Linear) else module.nx
    with torch.no_grad():
        return torch.is_tensor(module(module.weight.new_zeros(1, width)))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
