"""Which way of training a run takes, settled before weights are read; what would train another model is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from launcher.architecture.adapters import trained
from launcher.config.schema import Config, LoraConfig
from launcher.errors import TrntuneError, UsageError, in_first_line
from launcher.model_dir.weights import check_readable
from trainer.families.answers import Answering, answering
from trainer.families.experts import has_experts, single_expert
from trainer.families.proof import examine, prove, tried
from trainer.families.small import WINDOWS, small_config, small_model
from trainer.families.way import Way
from trainer.libraries.transformers_versions import recompute_activations
from trainer.models.adapt import check_faults
from trainer.models.load import check_foreign_code
from trainer.probes.model import on_meta


def way_of_training(model_dir: Path, config: Config) -> Way:
    """How the model of ``model_dir`` is trained on rows of training.max_length.

    Raises UsageError, in one line, where it would be another model than the one that transformers computes.
    """
    way = found_way(model_dir, config.training.max_length, config.model.trust_remote_code)
    refuse(way, model_dir, config.dataset.packing, config.training.max_length)
    return way


def found_way(model_dir: Path, length: int, trust: bool = False) -> Way:
    """What can be done with the model of ``model_dir`` on rows of ``length`` positions.

    Raises TrntuneError for what transformers can't read.
    """
    check_foreign_code(model_dir)
    check_readable(model_dir)
    try:
        facts = AutoConfig.from_pretrained(model_dir, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        raise TrntuneError(f"{model_dir}: the model can't be loaded: {in_first_line(error)}") from None
    try:
        return prove(facts, length, trust)
    except Exception as error:
        return _with_its_weights(model_dir, facts, trust, error)


def plain_attention(model_dir: Path) -> str | None:
    """transformers' attention that computes the model of ``model_dir`` whole: sdpa leaves soft caps out, in silence.

    None, transformers' own choice, for a model that nothing here can train.
    """
    try:
        way = prove(AutoConfig.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True), _ANY_LENGTH)
    except Exception:  # loading the model will say what is wrong with it
        return None
    return None if way.alone is not None else way.attention


def way_of_answering(model_dir: Path, length: int, fixed: str | None = None, trust: bool = False) -> Answering:
    """How the model of ``model_dir`` answers exactly, with questions and answers of up to ``length`` tokens; ``fixed``:
    the attention that it has and keeps.

    Raises TrntuneError where it can't.
    """
    try:
        facts = AutoConfig.from_pretrained(model_dir, trust_remote_code=trust, local_files_only=True)
        small = small_config(facts, length)
        model = small_model(small, "eager", trust)
    except Exception:  # a kind of which no small model can be built: the surest way
        return Answering(fixed, batched=False, cached=False)
    how = answering(model, fixed or tried(small, trust).attention, fixed is not None)
    if how is None:
        raise TrntuneError(
            f"{model_dir}: {type(model).__name__} can't answer here: transformers' generate gives other tokens "
            "than the model's own forward pass; leave stage generate out, and set tracking.samples=0"
        )
    return how


_ANY_LENGTH = 2


def refuse(way: Way, what: Any, packing: bool, length: int) -> None:
    """Raise UsageError for a model that can't be trained on rows of ``length`` positions, or not with several documents
    in a row."""
    rows = f" on rows of training.max_length={length}" if way.too_long else ""
    if way.alone is not None:
        remedy = "shorter rows work: lower it" if way.too_long else "take another model"
        raise UsageError(f"{what}: it can't be trained here{rows}, since {way.alone}; {remedy}")
    if packing and way.packed is not None:
        remedy = ", and so do shorter rows" if way.too_long else " (a sample a row)"
        raise UsageError(
            f"{what}: samples can't be packed{rows}, since {way.packed}; dataset.packing=false works{remedy}"
        )


def _with_its_weights(model_dir: Path, facts: PretrainedConfig, trust: bool, error: Exception) -> Way:
    """The same proof by the model itself, where no small one can be built of its kind."""
    bounded = [name for name in WINDOWS if getattr(facts, name, None)]
    if bounded:  # a few tokens wouldn't show it
        raise UsageError(
            f"{model_dir}: it can't be trained here, since {bounded[0]} can't be tried: no small model of "
            f"{type(facts).__name__} can be built ({in_first_line(error)}); take another model"
        ) from None
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager", use_safetensors=True, trust_remote_code=trust
    )
    return examine(model.eval(), small=False)


def check_fixed_shapes(model: torch.nn.Module, config: PretrainedConfig, where: Path | str) -> None:
    """Raise UsageError for a model whose shapes follow from its tokens: Neuron's devices compile each."""
    if has_experts(model, config):
        raise UsageError(
            f"{where}: a router sends each expert other numbers of tokens in each step, and TorchNeuron would compile "
            "for each; take another model, or another accelerator="
        )


def check_shardable(trained_names: Iterable[str], where: Path | str) -> None:
    """Raise UsageError where ranks would have gradients of different parameters: FSDP sums them unit by unit."""
    expert = single_expert(trained_names)
    if expert is not None:
        raise UsageError(
            f"parallelism.sharding=fsdp: {where} has each expert as parameters of its own with this transformers "
            f"({expert}), and a rank may have no token for one that another trains; train other layers, or take "
            "parallelism.sharding=ddp"
        )


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass. Raises UsageError where the family has no way to."""
    if not model.supports_gradient_checkpointing:
        raise UsageError(
            f"training.gradient_checkpointing=true: {type(model).__name__} can't; leave it out, or lower "
            "training.micro_batch_size"
        )
    recompute_activations(model)


def main(arguments: list[str]) -> int:
    """Process entry, for launcher.architecture.families: prints what refuses the model as JSON, or null."""
    request = json.loads(arguments[0])
    model_dir = Path(request["model_dir"]).expanduser()
    found = None
    try:
        refuse(found_way(model_dir, request["length"]), model_dir, request["packing"], request["length"])
        if request["fixed_shapes"]:
            facts = AutoConfig.from_pretrained(model_dir, trust_remote_code=False)
            check_fixed_shapes(on_meta(model_dir), facts, model_dir)
        if request["lora"] is not None:
            lora = LoraConfig(**request["lora"])
            found_there = trained(lora, check_faults(on_meta(model_dir), lora))
            names = [*(adapter.name for adapter in found_there.adapters), *found_there.saved]
        elif request["sharded"]:
            names = [name for name, _ in on_meta(model_dir).named_parameters()]
        if request["sharded"]:
            check_shardable(names, model_dir)
    except TrntuneError as error:
        found = str(error)
    print(json.dumps({"error": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
