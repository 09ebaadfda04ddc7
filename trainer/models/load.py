"""Loading a model directory and putting the method on it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from launcher.architecture.quantized import is_quantized
from launcher.config.schema import Config
from launcher.errors import TrntuneError, in_first_line, in_one_line
from launcher.jobs.torchrun import is_rank_zero
from launcher.model_dir.files import tokenizer_fault, vocabulary_of
from launcher.model_dir.weights import check_readable, incomplete, missing_text, stored_shapes, too_few_rows
from trainer.libraries.transformers_files import auto_tokenizer
from trainer.models.adapt import check_adapted_as_planned, check_faults, is_added, peft_config, size, train_in_fp32
from trainer.models.quantized import Packing, leave_files
from trainer.models.stored import not_finite_text

logging.set_verbosity_error()
logging.disable_progress_bar()


def load_tokenizer(model_dir: Path, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer of a model directory; where none is named, padding is the end-of-sequence token."""
    check_foreign_code(model_dir)
    try:
        tokenizer = auto_tokenizer(model_dir, use_fast=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # what transformers raises for a file that it can't convert is of any kind
        fault = _not_converted(model_dir) or f"its tokenizer can't be loaded: {in_first_line(error)}"
        raise TrntuneError(f"{model_dir}: {fault}") from None
    if not tokenizer.is_fast:
        raise TrntuneError(f"{model_dir}: there is no fast tokenizer (tokenizer.json); save one with transformers")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _not_converted(model_dir: Path) -> str | None:
    """Why no fast tokenizer can be made of another file than tokenizer.json; None where that is there."""
    file = vocabulary_of(model_dir)
    if file is None or file.name == "tokenizer.json":
        return tokenizer_fault(model_dir)
    remedy = "name its tokenizer_class in tokenizer_config.json"
    if file.suffix == ".model" and find_spec("sentencepiece") is None:
        remedy = "for that transformers needs sentencepiece (pip install sentencepiece)"
    return f"its tokenizer.json is missing, and none can be made of {file.name}: copy it from the model, or {remedy}"


def run_tokenizer(config: Config, model_dir: Path) -> Any:
    """The tokenizer of a run: the model's, with dataset.chat_template where that is given. It is saved beside what is
    trained, so that answers are asked for by the same template."""
    tokenizer = load_tokenizer(model_dir, config.model.trust_remote_code)
    if config.dataset.chat_template is not None:
        tokenizer.chat_template = _template(config.dataset.chat_template, tokenizer.chat_template, model_dir)
    return tokenizer


def _template(given: str, own: Any, model_dir: Path) -> Any:
    """The template in the file ``given``, or the model's own templates with the one of that name as the default."""
    file, named = Path(given).expanduser(), own if isinstance(own, dict) else {}
    if given in named and not file.is_file():
        return {**named, "default": named[given]}
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = f"those of {model_dir} are: {', '.join(sorted(named))}" if named else f"{model_dir} has none by name"
        why = f"there is no such file, and no chat template of that name ({there})"
    except (OSError, UnicodeDecodeError) as error:
        why = f"can't be read: {in_first_line(error)}"
    raise TrntuneError(f"dataset.chat_template={given}: {why}")


def bytes_when_read(model_dir: Path, config: Config) -> int | None:
    """Of a model's weights in host memory as they are trained; None where its files don't tell."""
    shapes = stored_shapes(model_dir)
    return None if shapes is None else sum(map(math.prod, shapes.values())) * weight_dtype(config).itemsize


def weight_dtype(config: Config) -> torch.dtype:
    """bf16 for a frozen base under bf16; trained weights stay fp32, and bf16 is then a matter of autocast."""
    frozen = config.method.name == "lora"
    return torch.bfloat16 if config.training.precision == "bf16" and frozen else torch.float32


def load_model(
    model_dir: Path, config: Config, attn_implementation: str, device: torch.device | None = None
) -> PreTrainedModel:
    """The model on the CPU; a base in 4 bit on ``device``, where its weights are packed. Raises TrntuneError for what
    transformers can't read, for another parameter count, and for weights that are no numbers."""
    check_foreign_code(model_dir)
    check_readable(model_dir)
    packing = Packing(model_dir, config) if is_quantized(config) else None
    if packing is not None:
        check_finite_weights(packing.stored(), model_dir)
    place, products = device or torch.device("cpu"), weight_dtype(config)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=weight_dtype(config),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=config.model.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report; transformers 5 says no more than that there are
            **({} if packing is None else packing.arguments(products, place)),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        fault = incomplete(model_dir)  # which transformers calls corrupted
        if fault is None:
            words = in_first_line(error) if not isinstance(error, RuntimeError) else in_one_line(error, 300)
            fault = f"the model can't be loaded: {words}"
        raise TrntuneError(f"{model_dir}: {fault}") from None
    model: PreTrainedModel = loaded[0]
    check_shapes(model, loaded[1], model_dir)
    check_none_missing(model, loaded[1], model_dir)
    found = count_parameters(model)[0]
    if config.model.parameters is not None and found != config.model.parameters:
        raise TrntuneError(
            f"{model_dir} has {found:,} parameters, not {config.model.parameters:,} as model.parameters says"
        )
    if packing is not None:
        packing.check(model)
        leave_files(model)
    else:
        check_finite_weights(model.named_parameters(), model_dir)
    return model


def check_shapes(model: PreTrainedModel, report: dict[str, Any], model_dir: Path) -> None:
    """Raise TrntuneError where transformers has made up weights for tensors of another shape, by its report on loading:
    names in 4.57, since 5 names with both shapes."""
    names = sorted(each if isinstance(each, str) else each[0] for each in report["mismatched_keys"])
    if not names:
        return
    fault = incomplete(model_dir)
    if fault is None:
        shape, more = list(model.state_dict()[names[0]].shape), len(names) - 1
        beside = f", and {more} more tensors don't fit either" if more else ""
        fault = f"{names[0]} has another shape than {shape}, which its config.json asks for{beside}"
    raise TrntuneError(f"{model_dir}: {fault}")


def check_none_missing(model: PreTrainedModel, report: dict[str, Any], model_dir: Path) -> None:
    """Raise TrntuneError where transformers has made up weights that no file holds, by its report on loading; tell of
    tensors that it has left."""
    # Of a tied pair that is stored under the head's name alone nothing is said to be missing, and nothing is loaded.
    unread = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    missing, unexpected = sorted({*report["missing_keys"], *unread}), sorted(report["unexpected_keys"])
    if missing:
        output = model.get_output_embeddings()
        head = next((f"{name}.weight" for name, module in model.named_modules() if module is output), None)
        raise TrntuneError(f"{model_dir}: {missing_text(missing, len(model.state_dict()), unexpected, head)}")
    if unexpected and is_rank_zero():
        listed = ", ".join(unexpected[:3]) + (", ..." if len(unexpected) > 3 else "")
        print(f"note: {model_dir}: {len(unexpected):,} tensors are no part of the model: {listed}", file=sys.stderr)


def check_finite_weights(weights: Iterable[tuple[str, torch.Tensor]], model_dir: Path) -> None:
    """Raise TrntuneError that names a weight with a NaN or an infinite number: no learning rate would help."""
    fault = not_finite_text(weights)
    if fault is not None:
        raise TrntuneError(f"{model_dir}: {fault}: the base is damaged; download or convert it again")


def check_enough_embeddings(model: PreTrainedModel, tokenizer: Any, model_dir: Path) -> None:
    """Raise TrntuneError for a tokenizer with tokens that the embedding has no row for."""
    embedding: Any = model.get_input_embeddings()
    fault = too_few_rows(max(tokenizer.get_vocab().values()), embedding.weight.shape[0])
    if fault is not None:
        raise TrntuneError(f"{model_dir}: {fault}")


def check_foreign_code(model_dir: Path) -> None:
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
    modules = check_faults(model, config.lora)
    torch.manual_seed(config.seed)
    adapter = peft_config(config.lora, modules)
    adapter.base_model_name_or_path = config.model.hub_id or str(model.name_or_path)
    try:
        adapted = get_peft_model(model, adapter)
    except (ValueError, TypeError) as error:  # layers that peft can't adapt in this family
        raise TrntuneError(f"lora: {in_first_line(error)}") from None
    assert isinstance(adapted, PeftModel)
    check_adapted_as_planned(adapted, config.lora, modules)
    train_in_fp32(adapted)
    return adapted


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Distinct parameters of the base model, packed or not, and distinct trainable ones. ``parameters()`` gives tied
    ones once."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    base = sum(size(p) for name, p in model.named_parameters() if not is_added(name))
    return base, trainable


def to_device(model: nn.Module, device: torch.device, but: Iterable[nn.Module] = ()) -> None:
    """Move a model, ``but`` for modules in it that stay where they are; parameters that are one stay one. torch makes
    new ones, also of those that are tied, where it doesn't know that a device's tensors can take the place of the
    CPU's: it knows it of none but its own backends (c10/core/TensorImpl.h, has_compatible_shallow_copy_type)."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    staying = {module for each in but for module in each.modules()}
    moved = [module for module in model.modules() if module not in staying]
    for module in moved:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
    for module in moved:
        module._apply(lambda tensor: tensor.to(device), recurse=False)
    for (first, known_as), *others in places.values():
        for module, name in others:
            module._parameters[name] = first._parameters[known_as]
