"""Which models are of texts alone, and how long their rows may be, told by their configurations."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig

from trainer.families.proof import prove
from trainer.families.small import not_for_texts, over_positions


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("gemma3", "Gemma3ForConditionalGeneration has parts beside the one for texts (vision_config)"),
        ("git", "GitForCausalLM has parts beside the one for texts (vision_config)"),
        ("fuyu", "FuyuForCausalLM has parts beside the one for texts, which"),
        ("llava", "transformers has no causal language model for LlavaConfig"),
        ("llama4", None),  # its part for texts is a class of its own, which is what is loaded
        ("gemma3_text", None),
        ("gpt2", None),
    ],
)
def test_parts_for_pictures_are_no_base(family, says):
    found = not_for_texts(AutoConfig.for_model(family))
    assert found is None if says is None else found.startswith(says)


def test_code_of_its_own_is_asked_itself_where_it_is_trusted():
    config = AutoConfig.for_model("llava")
    config.auto_map = {"AutoModelForCausalLM": "modeling.Model"}
    assert not_for_texts(config) is not None
    assert not_for_texts(config, trust_remote_code=True) is None


@pytest.mark.parametrize(("family", "name"), [("gpt2", "n_positions"), ("opt", "max_position_embeddings")])
def test_a_table_of_positions_ends(family, name):
    config = AutoConfig.for_model(family, **{name: 64})
    assert prove(config, 64).alone is None
    way = prove(config, 65)
    assert (way.alone, way.too_long) == (f"it has 64 positions ({name}) and nothing for those beyond", True)


def test_rotary_embeddings_go_on_and_are_told_of(tmp_path):
    config = AutoConfig.for_model("olmo2", max_position_embeddings=64)
    assert prove(config, 512).packed is None
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert over_positions(tmp_path, 64) is None
    says = "is over the 64 positions that the model was trained on (max_position_embeddings)"
    assert over_positions(tmp_path, 65) == says
    (tmp_path / "config.json").write_text("{}")
    assert over_positions(tmp_path, 65) is None
