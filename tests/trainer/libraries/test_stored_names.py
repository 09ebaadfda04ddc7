"""Names in a model's files against names in the model, as the installed transformers saves and loads both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from trainer.engines.torch import state
from trainer.families.cases import Case
from trainer.families.small import small_config, small_model
from trainer.libraries.transformers_versions import made_of, parts_of_parameters
from trainer.models.stored import stored_shapes

FAMILIES = ("llama", "mixtral", "qwen2_moe", "deepseek_v3", "granitemoe", "phimoe", "gpt_neox", "gpt2", "jamba")


def small(family: str):
    return small_model(small_config(Case(family).config(), 64), "eager")


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def saved(family: str, directory: Path):
    """A small model and the shapes of the tensors in its file."""
    model = small(family)
    model.save_pretrained(directory)
    return model, stored_shapes([directory / "model.safetensors"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_made_of_what_was_saved(family, tmp_path):
    model, stored = saved(family, tmp_path)
    made = made_of(model, stored)
    assert {name: made[name].shape for name in shapes_of(model)} == shapes_of(model)
    assert {source for parameter in made.values() for source in parameter.sources} == stored.keys()
    tensors = load_file(tmp_path / "model.safetensors")
    for name, parameter in made.items():
        if parameter.as_is:
            assert torch.equal(tensors[parameter.sources[0]], model.state_dict()[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_out_is_made_of_nothing_and_half_of_it_of_another_shape(family, tmp_path):
    model, stored = saved(family, tmp_path)
    whole = made_of(model, stored)
    name = max(whole, key=lambda name: len(whole[name].sources))
    *rest, last = whole[name].sources
    found = made_of(model, {source: shape for source, shape in stored.items() if source != last}).get(name)
    assert found is None if not rest else found is None or found.shape != whole[name].shape


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_its_prefix_is_found_too(family, tmp_path):
    model = small(family)
    model.base_model.save_pretrained(tmp_path)
    made = made_of(model, stored_shapes([tmp_path / "model.safetensors"]))
    inside = {name for name in shapes_of(model) if name.startswith(f"{model.base_model_prefix}.")}
    assert {name: made[name].shape for name in inside} == {name: shapes_of(model)[name] for name in inside}


def test_layers_that_become_parts_of_a_parameter_are_no_modules():
    assert not parts_of_parameters(small("llama"))
    model = small("mixtral")
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    parts = parts_of_parameters(model)
    assert parts in (set(), {"w1", "w2", "w3"})
    assert bool(parts) != bool(modules & {"w1", "w2", "w3"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rehearsal_saves_and_a_checkpoint_loads(family, tmp_path):
    """Whatever the library computes of a model's tensors when it saves the whole of them."""
    model = small(family).eval()
    state.save_weights(model, tmp_path / "rehearsal", state.first_numbers(model.state_dict()))
    assert stored_shapes([tmp_path / "rehearsal" / "model.safetensors"]).keys() == state.live_weights(model).keys()
    model.config.save_pretrained(tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "model.safetensors"
    save_file(state.copied(state.live_weights(model)), file, metadata={"format": "pt"})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", attn_implementation="eager").eval()
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(again(ids).logits, model(ids).logits)
