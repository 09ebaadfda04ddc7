"""An adapter put on a model by the installed peft: never less of it than its files hold."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection
from typing import Any

from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors import safe_open

import trainer.lean_peft  # noqa: F401 (before an adapter is put on a model)
from launcher.architecture.adapters import ends
from launcher.errors import TrntuneError, first, in_first_line
from launcher.run_dir.provenance import installed
from postprocess.merge.adapter import OF_THE_START, TYING, Adapter, changes_base, is_off, ties_in_full
from postprocess.merge.renames import PREFIX, fitting, module_of, proposed
from trainer.libraries.peft_versions import trains_rows_of

NAME = "default"  # peft's name for the adapter within the model; files don't have it
# Of a tied head peft with save_embedding_layers writes the embedding's rows a second time.
DELTA = ".token_adapter.trainable_tokens_delta"
# What newer releases write that says nothing of the adapter.
_SAYS_NOTHING = ("peft_version",)


def lora_config(adapter: Adapter) -> LoraConfig:
    """peft's configuration of an adapter that may be of another release.

    A setting that the installed peft doesn't know is left out where its value means that it is off, as newer releases
    write all of theirs (None, False, nothing). Raises TrntuneError for every other, and for values that peft refuses.
    """
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    written, tied = _without_tying(adapter)
    strange = [key for key, value in written.items() if key not in {*known, *_SAYS_NOTHING} and not is_off(value)]
    if strange:
        listed = first([f"{key}={adapter.config[key]!r:.60}" for key in strange])
        wrote = adapter.config.get("peft_version") or "a newer one"
        raise TrntuneError(
            f"{adapter.directory}: peft {installed('peft')} doesn't know {listed}, set by the peft that wrote the "
            f"adapter ({wrote}): merge it with that release (merge_and_unload)"
        )
    settings = {key: value for key, value in written.items() if key in known}
    if not changes_base(written):  # else peft has to begin so again, to come to the base that was trained on
        settings = {key: value for key, value in settings.items() if key not in OF_THE_START}
        settings["init_lora_weights"] = True
    settings.update(inference_mode=True, **tied)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LoraConfig(**settings)
    except (ValueError, TypeError) as error:
        raise TrntuneError(f"{adapter.directory}: peft can't read its configuration: {in_first_line(error)}") from None


def _without_tying(adapter: Adapter) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration without ensure_weight_tying, where an embedding and its head were trained in full as one, and
    what stands for it: both are in the file."""
    written = dict(adapter.config)
    if not ties_in_full(adapter):
        return written, {}
    del written[TYING]
    keys = list(written.get("modules_to_save") or ())
    whole = [module_of(name) for name in adapter.tensors if name == f"{PREFIX}{module_of(name)}.weight"]
    added = [name for name in whole if not any(ends(name, key) for key in keys)]
    return written, {"modules_to_save": keys + added} if keys else {}


def wrapped(model: Any, adapter: Adapter, low_cpu_mem_usage: bool = False) -> PeftModel:
    """The model with the adapter's modules, without its values. Raises TrntuneError where they don't fit."""
    config = lora_config(adapter)
    _check_rows_can_be_trained(model, config, adapter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on ties and transposed layers: both are dealt with here
            return PeftModel(model, config, NAME, low_cpu_mem_usage=low_cpu_mem_usage)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrntuneError(f"{adapter.directory} doesn't fit the base: {in_first_line(error)}") from None


def _check_rows_can_be_trained(model: Any, config: LoraConfig, adapter: Adapter) -> None:
    tokens = config.trainable_token_indices
    for key in tokens if isinstance(tokens, dict) else ():
        for name, module in model.named_modules():
            if ends(name, key) and not trains_rows_of(module):
                raise TrntuneError(
                    f"{adapter.directory}: trainable_token_indices has rows of {name}, which is no embedding: peft "
                    f"{installed('peft')} can't do that; merge it with 0.18 or later (merge_and_unload)"
                )


def adapted(model: Any, adapter: Adapter) -> PeftModel:
    """The model with the adapter, to compute with. Raises TrntuneError unless every tensor finds its place, with the
    renaming by which it would."""
    modules = [name for name, _ in model.named_modules()]
    try:
        return _adapted(model, adapter)
    except TrntuneError as error:
        if adapter.renames or not (rules := fitting(adapter.tensors, modules)):
            raise
        raise TrntuneError(f"{error}; {proposed(rules)}") from None


def _adapted(model: Any, adapter: Adapter) -> PeftModel:
    result = wrapped(model, adapter)
    with safe_open(adapter.weights, framework="pt") as opened:
        places = set(result.state_dict())
        tensors = {_place(name, places): opened.get_tensor(stored) for name, stored in adapter.names.items()}
    try:
        report = set_peft_model_state_dict(result, tensors, NAME)
    except KeyError as error:
        raise TrntuneError(f"{adapter.weights}: {error.args[0]} is missing, which its configuration asks for") from None
    except RuntimeError as error:
        raise TrntuneError(f"{adapter.directory} doesn't fit the base: {in_first_line(error)}") from None
    _check_all_loaded(adapter, result, report)
    return result.eval()


def _place(name: str, places: Collection[str]) -> str:
    """Where a tensor goes: before 0.7 peft had no base_layer in the names of a layer's own parameters."""
    module, _, leaf = name.rpartition(".")
    inner = f"{module}.base_layer.{leaf}"
    return inner if name not in places and inner in places else name


def _check_all_loaded(adapter: Adapter, model: PeftModel, report: Any) -> None:
    """peft loads what fits and says nothing of the rest. What it saves twice may be left."""
    # Of rows that are trained peft itself refuses missing ones, and takes a tied head's for missing.
    missing = [name for name in report.missing_keys if f".{NAME}" in name and DELTA not in name]
    left = [name for name in report.unexpected_keys if not duplicate(name) and DELTA not in name]
    if left or missing:
        what = f"{len(left)} tensors match nothing in the base: {first(sorted(left))}"
        if not left:
            what = f"{len(missing)} tensors that its configuration asks for are missing: {first(sorted(missing))}"
        raise TrntuneError(f"{adapter.weights}: {what}")


def duplicate(name: str) -> bool:
    """Whether a tensor is another's second copy: peft with save_embedding_layers writes wrapped embeddings under the
    names of all parts of the wrapper."""
    return any(part in name for part in (".original_module.", ".modules_to_save."))
