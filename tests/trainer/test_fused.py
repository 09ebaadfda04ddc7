"""The written-out passes give the values and gradients of the layers that they replace."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.data.collate import Collator
from trainer.data.tokenize import IGNORE, Example
from trainer.fused import fuse
from trainer.fused.lora import keep_mask, lora_linear
from trainer.fused.norm import rms_norm
from trainer.models.attention import DOCUMENT_ATTENTION, segments_of
from trainer.models.block_attention import BLOCK, Terms, block_attention
from trainer.models.causal_lm import MODEL_INPUTS, CausalLMLoss


def adapted(**changes):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=61,
            initializer_range=0.3,
            attention_bias=True,
        )
    )
    settings = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    model = get_peft_model(model, LoraConfig(**{**settings, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


def gradients(model) -> dict[str, torch.Tensor]:
    ids = torch.arange(40).view(2, 20)
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_fused_model_gives_the_gradients_and_names_of_the_library():
    reference, model = adapted(), adapted()
    assert fuse(model) == {"lora": 4, "norm": 5}
    expected, found = gradients(reference), gradients(model)
    assert list(found) == list(expected)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6, msg=name)
    assert list(get_peft_model_state_dict(model)) == list(get_peft_model_state_dict(reference))
    assert model.state_dict().keys() == reference.state_dict().keys()


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"lora_bias": True}])
def test_adapters_of_another_form_are_left_alone(changes):
    reference, model = adapted(**changes), adapted(**changes)
    assert fuse(model)["lora"] == 0
    # Both are within 1e-5 of the fp64 logits (at most 6.3): fused norms round elsewhere.
    ids = torch.arange(9)[None]
    torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_loss_curve_is_that_of_each_sample_alone_without_any_of_it():
    """Packed, fused, chunked, in blocks, against transformers' eager model on one sample at a time."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 61, (length,), generator=generator).tolist() for length in (70, 9, 33, 2)]
    samples = [Example(ids, [IGNORE, *ids[1:]]) for ids in rows]
    fused, alone = adapted(), adapted()
    fused.get_base_model().set_attn_implementation(DOCUMENT_ATTENTION)
    alone.get_base_model().set_attn_implementation("eager")
    fuse(fused)
    module, batch = CausalLMLoss(fused), Collator(128, 0)([samples])
    optimizers = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=0.05) for m in (fused, alone)]
    curves: list[list[float]] = [[], []]
    for _ in range(6):
        losses = [module(**{name: batch[name] for name in MODEL_INPUTS}), sum(map(partial(own_loss, alone), samples))]
        for curve, loss, optimizer in zip(curves, losses, optimizers, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(float(loss.detach()))
    assert curves[1][-1] < 0.9 * curves[1][0]  # it learns
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def own_loss(model, sample: Example) -> torch.Tensor:
    """Summed loss of one sample by transformers' own forward pass."""
    logits = model(input_ids=torch.tensor([sample.input_ids])).logits[0, :-1]
    return cross_entropy(logits, torch.tensor(sample.labels[1:]), reduction="sum")


def test_switched_off_and_merged_adapters_are_heard():
    reference, model = adapted(), adapted()
    fuse(model)
    ids = torch.arange(9)[None]
    with reference.disable_adapter(), model.disable_adapter():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.merge_and_unload()(ids).logits, reference(ids).logits, rtol=1e-4, atol=1e-4)


def test_dropout_reaches_value_and_gradients_alike():
    """With the mask that it drew, the layer equals the formula: also what goes back to x."""
    torch.manual_seed(3)
    x, weight, a, b = torch.randn(7, 5, 12), torch.randn(10, 12), torch.randn(3, 12), torch.randn(10, 3)
    leaves = [tensor.double().requires_grad_() for tensor in (x, a, b)]
    state = torch.get_rng_state()
    out = lora_linear(leaves[0], weight.double(), None, leaves[1], leaves[2], 0.7, p=0.25)
    torch.set_rng_state(state)
    mask = keep_mask(leaves[0].detach().flatten(0, -2), 0.25).view(x.shape)
    expected = leaves[0] @ weight.double().T + 0.7 * ((leaves[0] * mask / 0.75) @ leaves[1].T) @ leaves[2].T
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for mine, theirs in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_keeps_the_share_that_was_asked_for(p):
    torch.manual_seed(0)
    mask = keep_mask(torch.empty(1001, 999), p)
    assert mask.unique().tolist() == [0, 1]
    assert abs(float(mask.mean()) - (1 - p)) < 0.002
    # Neighbours come from one 64-bit number and must not know of each other.
    pairs = mask.flatten()[:-1].view(-1, 2)
    assert abs(float(pairs.prod(1).mean()) - (1 - p) ** 2) < 0.003


def test_a_layer_without_adapters_below_it_computes_no_input_gradient():
    x, a, b = torch.randn(4, 6), torch.randn(2, 6, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    lora_linear(x, torch.randn(5, 6), None, a, b, 1.0).sum().backward()
    assert x.grad is None
    assert a.grad is not None


def test_norm_is_checked_against_numerical_gradients():
    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-5), (x, weight))


@pytest.mark.parametrize("lengths", [[1, BLOCK - 1, BLOCK], [BLOCK + 1, 7], [8 * BLOCK + 3]])
@pytest.mark.parametrize("heads", [(6, 2), (2, 2), (3, 1)])
def test_block_attention_is_the_librarys_on_each_document(lengths, heads):
    torch.manual_seed(0)
    total = sum(lengths) + 5  # the last five are padding
    shapes = [(1, total, count, 8) for count in (heads[0], heads[1], heads[1])]
    q, k, v = (torch.randn(shape, dtype=torch.float64).transpose(1, 2).requires_grad_() for shape in shapes)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    bounds = list(zip([0, *ends[:-1]], ends, strict=True))
    segments = segments_of([(0, start, end) for start, end in bounds], 1, total)
    out = block_attention(q, k, v, segments.each, Terms(0.3))
    alone = [
        scaled_dot_product_attention(
            *(states[:, :, start:end] for states in (q, k, v)), is_causal=True, scale=0.3, enable_gqa=True
        )
        for start, end in bounds
    ]
    expected = torch.cat([*alone, torch.zeros_like(q[:, :, :5])], dim=2).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(each, (q, k, v), grad) for each in (out, expected))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
