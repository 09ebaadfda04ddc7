"""Windows, chunks, soft caps and sinks inside documents, against attention written out with a mask; and what isn't
known is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM
from transformers.masking_utils import chunked_causal_mask_function, sliding_window_causal_mask_function

from launcher.errors import UsageError
from trainer.libraries.transformers_versions import Queries
from trainer.models.attention import DOCUMENT_ATTENTION, document_attention, segments_of
from trainer.models.block_attention import BLOCK
from trainer.models.causal_lm import CausalLMLoss
from trainer.models.reach import Reach, Segments, UnknownAttention, document_mask, packed_rows

DOCUMENTS = [(0, 0, 70), (0, 70, 73), (0, 73, 290), (1, 5, 6), (1, 6, 190)]
LENGTH = 300
HEADS, KEY_HEADS, SIZE, VALUE_SIZE = 4, 2, 8, 6


class Layer(nn.Module):
    pass


def states() -> list[torch.Tensor]:
    """Query, key, value and sinks."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, HEADS, LENGTH, SIZE), (2, KEY_HEADS, LENGTH, SIZE), (2, KEY_HEADS, LENGTH, VALUE_SIZE), (HEADS,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def sees(reach: Reach | None, length: int) -> torch.Tensor:
    """[n, n]: which keys of its document a query sees."""
    query, key = torch.arange(length)[:, None], torch.arange(length)
    if reach is None:
        return key <= query
    if reach.kind == "window":
        return (key <= query) & (key > query - reach.size)
    return (key <= query) & (key // reach.size == query // reach.size)


def written_out(q, k, v, sinks, reach, softcap) -> torch.Tensor:
    out = torch.zeros(2, LENGTH, HEADS, VALUE_SIZE, dtype=q.dtype)
    k, v = k.repeat_interleave(HEADS // KEY_HEADS, 1), v.repeat_interleave(HEADS // KEY_HEADS, 1)
    for row, start, end in DOCUMENTS:
        scores = q[row, :, start:end] @ k[row, :, start:end].transpose(1, 2) * 0.7
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~sees(reach, end - start), float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks[:, None, None].expand(-1, end - start, 1)], -1)
        probabilities = torch.softmax(scores, -1)[..., : end - start]
        out[row, start:end] = (probabilities @ v[row, :, start:end]).transpose(0, 1)
    return out


REACHES = [None, *(Reach("window", size) for size in (1, 5, BLOCK, BLOCK + 1, 130, 217, 500)), Reach("chunk", 16)]


@pytest.mark.parametrize("plain", [True, False], ids=["blocks", "library"])
@pytest.mark.parametrize(("softcap", "sunk"), [(None, False), (2.0, False), (None, True), (3.0, True)])
@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_attention_and_its_gradients_are_those_of_a_mask(reach, softcap, sunk, plain, monkeypatch):
    monkeypatch.setattr("trainer.models.attention.is_plain", lambda *tensors: plain)
    segments = segments_of(DOCUMENTS, 2, LENGTH)
    weight = torch.randn(2, LENGTH, HEADS, VALUE_SIZE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    results = []
    for ours in (True, False):
        q, k, v, sinks = states()
        if ours:
            given = {"softcap": softcap, "s_aux": sinks if sunk else None, "segments": segments}
            out, _ = document_attention(Layer(), q, k, v, reach, scaling=0.7, **given)
        else:
            out = written_out(q, k, v, sinks if sunk else None, reach, softcap)
        covered = torch.zeros(2, LENGTH, 1, 1, dtype=torch.float64)
        for row, start, end in DOCUMENTS:
            covered[row, start:end] = 1
        (out * weight * covered).sum().backward()
        results.append([out * covered, q.grad, k.grad, v.grad, *([sinks.grad] if sunk else [])])
    # The library's written-out softmax is fp32.
    tolerance = 1e-9 if plain else 2e-5
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [2, 3, 8, 100])
def test_windows_and_chunks_are_told_apart(size):
    queries = Queries(LENGTH, 0, torch.device("cpu")).arguments()
    given = {"attention_mask": torch.ones(1, LENGTH, dtype=torch.bool), "local_size": size, **queries}
    for padding in range(size):
        chunked = chunked_causal_mask_function(size, torch.tensor([padding]))
        assert document_mask(1, LENGTH, mask_function=chunked, **given) == Reach("chunk", size)
    window = sliding_window_causal_mask_function(size)
    assert document_mask(1, LENGTH, mask_function=window, **given) == Reach("window", size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position_bias": torch.zeros(1)}, "Layer hands position_bias to attention"),
        ({"attention_mask": torch.zeros(1, 4, 9, 9)}, "Layer makes a mask of its own, of shape"),
        ({"attention_mask": torch.zeros(1, 1, 9, 9)}, "Layer makes a mask of its own that isn't plainly causal"),
        ({"is_causal": False}, "Layer isn't causal"),
        ({"sliding_window": 4}, "Layer asks for sliding_window=4 and transformers masks by None"),
    ],
)
def test_what_is_not_known_is_refused_by_name(arguments, message):
    q = torch.zeros(1, 2, 9, 4)
    with pytest.raises(UnknownAttention, match=message):
        document_attention(Layer(), q, q, q, **{"attention_mask": None, **arguments})
    assert issubclass(UnknownAttention, UsageError)


def test_a_layer_that_is_not_told_of_the_documents_is_refused():
    q = torch.zeros(1, 2, 9, 4)
    with (
        packed_rows(Segments([(0, 0, 9, True)])),
        pytest.raises(UnknownAttention, match="isn't told where documents begin"),
    ):
        document_attention(Layer(), q, q, q, None)


def test_a_window_is_kept_when_activations_are_recomputed():
    """The backward pass runs layers again, outside of the forward pass: the documents must go with the layers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(**sizes, num_key_value_heads=2, vocab_size=61, sliding_window=4)
    config._attn_implementation = DOCUMENT_ATTENTION
    model = MistralForCausalLM(config).train()
    documents = torch.tensor([(0, 0, 20), (0, 20, 33)])
    ids = torch.randint(0, 61, (1, 40))
    places = torch.cat([torch.arange(20), torch.arange(13), torch.zeros(7, dtype=torch.int64)])[None]
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        CausalLMLoss(model)(ids, places, documents, ids.roll(-1, 1)).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*found)
