"""What goes to the device: the same loss as the torch engine's, from fixed shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from launcher.config.schema import ArchitectureConfig
from trainer.data.collate import Collator
from trainer.data.tokenize import Example
from trainer.engines.neuron.batch import attention_bias, filled, host_batch, trained_labels
from trainer.fetch.tiny_llama import build
from trainer.models.causal_lm import MODEL_INPUTS, CausalLMLoss

ARCHITECTURE = ArchitectureConfig("llama", 64, 128, 2, 4, 2, 16, 264, 4096, True)


def example(begin: int, length: int, masked: int) -> Example:
    ids = [(begin + i) % 250 + 4 for i in range(length)]
    return Example(ids, [-100] * masked + ids[masked:])


# Two documents and padding, three documents without, padding alone.
ROWS = [[example(0, 9, 3), example(50, 12, 5)], [example(7, 8, 0), example(90, 4, 2), example(33, 12, 1)], []]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    build(directory, ARCHITECTURE)
    return directory


def test_packed_rows_have_the_loss_and_the_gradients_of_the_torch_engine(model_dir: Path) -> None:
    batch = Collator(24, 0)(ROWS)
    theirs = CausalLMLoss(AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="trntune_documents"))
    expected = theirs(**{name: batch[name] for name in MODEL_INPUTS})
    expected.backward()
    model = AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="eager")
    inputs = host_batch(batch, packing=True)
    bias = attention_bias(inputs.pop("documents"), torch.float32)
    loss = model(**inputs, attention_mask=bias, num_items_in_batch=1).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for mine, other in zip(model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_without_packing_nothing_but_ids_and_labels_travels_and_causal_attention_is_exact(model_dir: Path) -> None:
    batch = Collator(24, 0)([[example(0, 9, 3)], [example(7, 20, 0)]])
    inputs = host_batch(batch, packing=False)
    assert sorted(inputs) == ["input_ids", "labels"]
    model = AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="eager")
    loss = model(**inputs, num_items_in_batch=1).loss
    theirs = CausalLMLoss(AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="trntune_documents"))
    torch.testing.assert_close(loss, theirs(**{name: batch[name] for name in MODEL_INPUTS}), rtol=1e-5, atol=1e-5)


def test_no_score_is_lost_to_infinity_or_nan_in_bf16() -> None:
    numbers = host_batch(Collator(24, 0)(ROWS), packing=True)["documents"]
    bias = attention_bias(numbers, torch.bfloat16)
    assert bias.shape == (3, 1, 24, 24)
    weights = (torch.full_like(bias, -3.0) + bias).softmax(dim=-1)
    assert torch.isfinite(weights).all()
    assert not weights[0, 0, 9:21, :9].any(), "the second document looks into the first"


def test_labels_are_counted_without_making_tensors() -> None:
    assert trained_labels(ROWS) == int(Collator(24, 0)(ROWS)["num_trained"])


def test_a_last_batch_has_the_shape_of_the_others_and_the_same_loss() -> None:
    collator = Collator(24, 0)
    whole, short = collator(ROWS), collator(filled(ROWS[:1], 3))
    assert {name: whole[name].shape for name in ("input_ids", "targets")} == {
        name: short[name].shape for name in ("input_ids", "targets")
    }
    assert int(short["num_trained"]) == trained_labels(ROWS[:1])
