"""Packed, chunked and unmasked: the same losses and gradients as the plain model on each example alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.data.collate import Collator
from trainer.data.tokenize import IGNORE, Example
from trainer.models.attention import DOCUMENT_ATTENTION, segments_of
from trainer.models.causal_lm import CausalLMLoss, has_plain_head
from trainer.models.loss import CHUNK, linear_cross_entropy


def tiny(attention: str = DOCUMENT_ATTENTION, **changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 61,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "attn_implementation": attention,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for length, masked in ((17, 5), (1, 0), (9, 0), (30, 29), (4, 2)):
        ids = torch.randint(0, 61, (length,), generator=generator).tolist()
        found.append(Example(ids, [IGNORE] * masked + ids[masked:]))
    return found


def alone(model: LlamaForCausalLM, example: Example) -> torch.Tensor:
    """Summed loss of one example by transformers' own forward pass."""
    logits = model(torch.tensor([example.input_ids])).logits[0, :-1].float()
    return cross_entropy(logits, torch.tensor(example.labels[1:], dtype=torch.int64), reduction="sum")


def packed_inputs(rows: list[list[Example]], length: int = 64) -> dict[str, torch.Tensor]:
    batch = Collator(length, pad_token_id=0)(rows)
    return {name: batch[name] for name in ("input_ids", "position_ids", "documents", "targets")}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("changes", [{}, {"attention_bias": True}])
def test_packed_loss_and_gradients_are_those_of_each_example_alone(tied, changes):
    rows = [examples()[:3], examples()[3:]]
    reference = tiny("eager", tie_word_embeddings=tied, **changes)
    expected = sum(alone(reference, example) for row in rows for example in row)
    expected.backward()

    model = tiny(tie_word_embeddings=tied, **changes)
    loss = CausalLMLoss(model)(**packed_inputs(rows))
    loss.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for (name, mine), (_, theirs) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_a_document_does_not_see_its_neighbour():
    first, second = examples()[0], examples()[2]
    model = CausalLMLoss(tiny()).eval()
    together = model(**packed_inputs([[first, second]]))
    other = Example([(token + 7) % 61 for token in first.input_ids], [IGNORE] * len(first.input_ids))
    with_other_neighbour = model(**packed_inputs([[other, second]]))
    own = model(**packed_inputs([[first]]))
    torch.testing.assert_close(together - own, with_other_neighbour, rtol=1e-5, atol=1e-5)


def test_a_batch_of_padding_gives_zero_and_a_gradient_for_every_parameter():
    """DistributedDataParallel would wait forever for a parameter without one."""
    model = CausalLMLoss(tiny())
    loss = model(**packed_inputs([[], []]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_head_with_a_bias_takes_the_dense_path_and_agrees():
    model = tiny(tie_word_embeddings=False)
    model.lm_head = torch.nn.Linear(32, 61, bias=True)
    assert not has_plain_head(model)
    rows = [examples()[:3]]
    expected = sum(alone(model, example) for example in rows[0])
    torch.testing.assert_close(CausalLMLoss(model)(**packed_inputs(rows)), expected, rtol=1e-5, atol=1e-5)


def test_segments_cover_every_position_once():
    documents = torch.tensor([(0, 0, 3), (0, 3, 5), (2, 0, 8)])
    segments = segments_of(documents, rows=4, length=8)
    covered = [(row, position) for row, start, end, _ in segments for position in range(start, end)]
    assert covered == [(row, position) for row in range(4) for position in range(8)]
    assert [list(segment[:3]) for segment in segments if segment[3]] == documents.tolist()


@pytest.mark.parametrize("count", [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 3])
def test_chunked_cross_entropy_is_the_dense_one(count):
    torch.manual_seed(0)
    hidden = torch.randn(count + 5, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.cat([torch.randint(0, 40, (count,)), torch.full((5,), IGNORE)])
    mine = torch.autograd.grad(2 * linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    dense = 2 * cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE, reduction="sum")
    theirs = torch.autograd.grad(dense, (hidden, weight))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_evaluation_computes_no_gradient():
    weight = torch.randn(8, 4, requires_grad=True)
    with torch.no_grad():
        loss = linear_cross_entropy(torch.randn(3, 4), weight, torch.tensor([1, 2, 3]))
    assert not loss.requires_grad
