"""What is saved under one of transformers 4.57 and 5 is read under the other: CI runs this with both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoConfig, AutoTokenizer

from launcher.errors import TrntuneError
from launcher.model_dir.rotary import APART, JOINED, rotary_fault, with_both
from launcher.model_dir.weights import check_readable
from tests.trainer.models.conftest import composed
from trainer.fetch.sources import fetch_model
from trainer.fetch.tiny_llama import byte_tokenizer
from trainer.libraries.transformers_files import auto_tokenizer, save_tokenizer
from trainer.libraries.transformers_versions import MAJOR

LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 8192,
}
PARTIAL = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.25}
# As transformers 5.24 writes them, and what 4.57 has to find in them.
JOINED_OF = {
    "llama": ({**LLAMA3, "rope_theta": 500000.0}, {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
    "qwen3": ({"rope_theta": 1e6, "rope_type": "default"}, {"rope_theta": 1e6, "rope_scaling": None}),
    "stablelm": (PARTIAL, {"rope_theta": 10000.0, "partial_rotary_factor": 0.25}),
}
# As 4.57 writes them: of families whose settings 5 renames or keeps by kind of layer.
APART_OF = {
    "gpt_neox": {"rotary_pct": 0.5, "rotary_emb_base": 20000},
    "gemma3_text": {"rope_theta": 2e6, "rope_local_base_freq": 5000.0, "rope_scaling": None},
    "llama": {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
}


def read(document: dict[str, Any], directory: Path) -> Any:
    (directory / "config.json").write_text(json.dumps(document))
    return AutoConfig.from_pretrained(directory)


@pytest.mark.parametrize("family", JOINED_OF)
def test_rotary_settings_of_5_are_read_by_4(family, tmp_path):
    joined, apart = JOINED_OF[family]
    config = read(with_both({"model_type": family, JOINED: joined}, {}), tmp_path)
    if MAJOR < 5:
        assert {key: getattr(config, key) for key in apart} == apart
    else:
        assert {key: config.rope_parameters[key] for key in joined} == joined


@pytest.mark.parametrize("family", APART_OF)
def test_a_base_of_4_that_5_has_saved_is_read_as_before(family, tmp_path):
    base = {"model_type": family, **APART_OF[family]}
    config = read(base, tmp_path)
    saved = with_both(json.loads(config.to_json_string()), base)
    assert base.items() <= saved.items()
    again = read(saved, tmp_path).to_dict()
    assert {key: again.get(key) for key in (JOINED, *APART)} == {
        key: config.to_dict().get(key) for key in (JOINED, *APART)
    }


def test_4_refuses_what_it_would_read_otherwise(tmp_path):
    """Settings by kind of layer can't be told in its words."""
    by_kind = {"sliding_attention": {"rope_theta": 5000.0, "rope_type": "default"}}
    for family, joined in (("llama", {"rope_theta": 500000.0, "rope_type": "default"}), ("gemma3_text", by_kind)):
        document = {"model_type": family, JOINED: joined}
        (tmp_path / "config.json").write_text(json.dumps(document))
        fault = rotary_fault(tmp_path)
        if MAJOR >= 5:
            assert fault is None
            continue
        assert fault is not None
        assert ('add "rope_theta": 500000.0, "rope_scaling": null to it, or take' in fault) == (family == "llama")
        with pytest.raises(TrntuneError, match="of which transformers 4"):
            check_readable(tmp_path)
        known = family == "gemma3_text"
        for beside, read_alike in (
            ({"rope_theta": 500000.0}, True),
            ({"rope_theta": 1.0}, known),  # of settings by kind it isn't known what the same would be
            ({"rope_scaling": None}, known),
        ):
            (tmp_path / "config.json").write_text(json.dumps({**document, **beside}))
            assert (rotary_fault(tmp_path) is None) == read_alike, beside


def test_4_refuses_settings_whose_scaling_it_would_not_find(tmp_path):
    joined = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0}
    document = {"model_type": "llama", JOINED: joined, "rope_theta": 500000.0}
    for beside, read_alike in (({}, False), ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, True)):
        (tmp_path / "config.json").write_text(json.dumps({**document, **beside}))
        assert (rotary_fault(tmp_path) is None) == (read_alike or MAJOR >= 5)


def test_a_model_that_is_made_here_names_its_rotary_base_in_words_of_both():
    document = json.loads((fetch_model(composed("experiment=tiny").model) / "config.json").read_text())
    assert document["rope_theta"] == 10000.0


def test_a_tokenizer_is_saved_in_words_of_both(tmp_path):
    tokenizer = byte_tokenizer(512)
    tokenizer.add_special_tokens({"eos_token": "<a>"})
    tokenizer.add_tokens([AddedToken("<b>", special=True)], special_tokens=True)
    save_tokenizer(tokenizer, tmp_path)
    document = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert document["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(document.get("extra_special_tokens"), list)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("x<a>y<b>")["input_ids"] == tokenizer("x<a>y<b>")["input_ids"]
    assert set(again.all_special_tokens) == set(tokenizer.all_special_tokens)


def test_a_tokenizer_that_5_has_saved_is_read_by_both(tmp_path):
    """tokenizer_config.json as 5.24 writes it; nothing else differs."""
    tokenizer = byte_tokenizer(512)
    tokenizer.save_pretrained(tmp_path)
    of_five = {
        **{"backend": "tokenizers", "clean_up_tokenization_spaces": False, "is_local": True, "local_files_only": False},
        **{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 512},
        **{"extra_special_tokens": ["<|im_start|>"], "tokenizer_class": "TokenizersBackend"},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(of_five))
    found = auto_tokenizer(tmp_path, use_fast=True)
    assert found("x<|im_start|>")["input_ids"] == tokenizer("x<|im_start|>")["input_ids"]
    assert set(found.all_special_tokens) == {"<|im_end|>", "<|endoftext|>", "<|im_start|>"}
    assert (found.eos_token, found.pad_token, found.model_max_length) == ("<|im_end|>", "<|endoftext|>", 512)
