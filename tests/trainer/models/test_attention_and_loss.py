"""Packed, chunked and unmasked: the same losses and gradients as the plain model on each example alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from launcher.errors import TrntuneError
from trainer.data.collate import Collator
from trainer.data.tokenize import IGNORE, Example
from trainer.engines.torch.state import host_copies
from trainer.models.attention import DOCUMENT_ATTENTION, segments_of
from trainer.models.causal_lm import CausalLMLoss, has_plain_head
from trainer.models.load import to_device
from trainer.models.loss import CHUNK, fixed_cross_entropy, linear_cross_entropy


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
    documents = [[0, 0, 3], [0, 3, 5], [2, 0, 8]]
    segments = segments_of(documents, rows=4, length=8).each
    covered = [(row, position) for row, start, end, _ in segments for position in range(start, end)]
    assert covered == [(row, position) for row in range(4) for position in range(8)]
    assert [list(segment[:3]) for segment in segments if segment[3]] == documents


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("count", [0, 3, 2 * CHUNK])
def test_the_loss_of_fixed_shapes_is_the_chunked_one(count, trained, dtype):
    """Padding between the targets, two rows, int32 ids, a head of fp32 that is trained on a bf16 base."""
    torch.manual_seed(0)
    places = torch.randperm(600)[:count]
    targets = torch.full((600,), IGNORE)
    targets[places] = torch.randint(0, 61, (count,))
    hidden = torch.randn(2, 300, 16, dtype=dtype, requires_grad=trained[0])
    weight = torch.randn(61, 16, requires_grad=trained[1])
    asked = [tensor for tensor, is_trained in zip((hidden, weight), trained, strict=True) if is_trained]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = linear_cross_entropy(hidden, weight, targets.view(2, 300))
        found = fixed_cross_entropy(hidden, weight, targets.view(2, 300).int())
    torch.testing.assert_close(found, expected, rtol=2e-7 * max(1, count), atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(3 * found, asked), torch.autograd.grad(3 * expected, asked), strict=True
    ):
        # bf16 rounds the product of each chunk, and the chunks are others.
        error = (mine - theirs).norm() / theirs.norm().clamp(min=1e-30)
        assert float(error) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_its_operations_are_the_same_whatever_has_a_target():
    """What it hands to the device: names and shapes, of a batch with few targets, with many, and with none."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[str, tuple[torch.Size, ...]]] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            shapes = tuple(each.shape for each in args if isinstance(each, torch.Tensor))
            self.calls.append((str(function), shapes))
            return function(*args, **(kwargs or {}))

    def recorded(count: int) -> list[tuple[str, tuple[torch.Size, ...]]]:
        targets = torch.full((600,), IGNORE, dtype=torch.int32)
        targets[:count] = 7
        hidden, weight = torch.randn(1, 600, 8, requires_grad=True), torch.randn(32, 8, requires_grad=True)
        with Recorder() as recorder:
            fixed_cross_entropy(hidden, weight, targets[None]).backward()
        return recorder.calls

    calls = recorded(0)
    assert recorded(5) == recorded(600) == calls
    names = {name for name, _ in calls}
    assert not [name for name in names if any(word in name for word in ("nonzero", "index", "gather", "scatter"))]
    assert not any("_local_scalar" in name for name in names)


def test_rows_of_fixed_shapes_are_computed_whole_and_give_the_same_loss_and_gradients():
    rows = [[each] for each in examples()]
    inputs = packed_inputs(rows)
    models = tiny(), tiny()
    loss, fixed = CausalLMLoss(models[0])(**inputs), CausalLMLoss(models[1], fixed_shapes=True)(**inputs)
    torch.testing.assert_close(fixed, loss, rtol=1e-6, atol=0)
    loss.backward()
    fixed.backward()
    for (name, mine), (_, theirs) in zip(models[1].named_parameters(), models[0].named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
    with pytest.raises(TrntuneError, match="can't keep documents of a row apart"):
        CausalLMLoss(models[1], fixed_shapes=True)(**packed_inputs([examples()[:3]]))


class HeadProducts(TorchDispatchMode):
    """Dtypes of the matrix products that have the vocabulary's size."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in ("aten::mm", "aten::addmm"):
            factors = [each for each in args if isinstance(each, torch.Tensor)][-2:]
            self.dtypes |= {each.dtype for each in factors if 61 in factors[0].shape + factors[1].shape}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("fixed", [False, True])
def test_the_heads_products_are_in_bf16_where_all_is_trained_in_bf16(fixed: bool):
    """Weights that are trained are fp32, and so is what the last norm gives."""
    module, rows = CausalLMLoss(tiny(), fixed_shapes=fixed), packed_inputs([[each] for each in examples()])
    expected = float(module(**rows))
    with HeadProducts() as products, torch.autocast("cpu", torch.bfloat16):
        loss = module(**rows)
        loss.backward()
    assert products.dtypes == {torch.bfloat16}
    assert module.model.lm_head.weight.grad.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-2)


def test_a_gradient_in_bf16_is_divided_as_one_in_fp32_is():
    """By 385 labels, say, whose inverse bf16 would round by 0.2 %."""
    hidden, weight = torch.randn(385, 32, generator=torch.Generator().manual_seed(3)), tiny().lm_head.weight.detach()
    given, targets = hidden.bfloat16().requires_grad_(), torch.arange(385) % 61
    (linear_cross_entropy(given, weight.bfloat16(), targets) / 385).backward()
    whole = hidden.bfloat16().requires_grad_()
    linear_cross_entropy(whole, weight.bfloat16(), targets).backward()
    assert float(given.grad.double().norm() / whole.grad.double().norm() * 385) == pytest.approx(1, abs=2e-4)


def test_tied_parameters_stay_one_on_a_device_and_as_copies():
    """torch makes new parameters for a device of others than its own backends, as it can be told to do here."""
    model = tiny()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        to_device(model, torch.device("meta"))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    assert model.lm_head.weight.device.type == "meta"
    assert model.lm_head.weight is model.get_input_embeddings().weight
    staying = tiny()
    layers = staying.model.layers
    to_device(staying, torch.device("meta"), but=layers)
    assert {each.device.type for each in layers.parameters()} == {"cpu"}
    assert {staying.lm_head.weight.device.type, staying.model.norm.weight.device.type} == {"meta"}
    copies = host_copies(tiny())
    assert copies["lm_head.weight"] is copies["model.embed_tokens.weight"]
