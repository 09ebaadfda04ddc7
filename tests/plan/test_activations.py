"""What the backward pass keeps: the plan's formula against the tensors that autograd saves in the real engine."""

from __future__ import annotations

import pytest
import torch

from launcher.plan.activations import kept_by_layer, reached_layers
from tests.launcher.conftest import single
from trainer.data.tokenize import Example
from trainer.engines.torch.engine import TorchEngine
from trainer.fetch.sources import fetch_model
from trainer.models import loss
from trainer.models.causal_lm import MODEL_INPUTS
from trainer.models.load import load_tokenizer

LENGTH = 512


def saved_bytes(layers: int, arguments: tuple[str, ...]) -> int:
    """Bytes of the distinct storages that autograd keeps in one forward pass of two documents, parameters left out."""
    config = single(
        "model=tiny_llama",
        f"model.architecture.layers={layers}",
        "training.global_batch_size=1",
        f"training.max_length={LENGTH}",
        *arguments,
    ).config
    engine = TorchEngine(config)
    directory = fetch_model(config.model)
    engine.load(directory, load_tokenizer(directory))
    engine.replica.module.train()
    document = Example([5] * (LENGTH // 2), [5] * (LENGTH // 2))
    batch = engine.replica.collator([[document, document]])
    parameters = {p.untyped_storage().data_ptr() for p in engine.replica.module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), engine.replica.autocast():
        engine.replica.module(**{name: batch[name] for name in MODEL_INPUTS})
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("arguments", "tolerance"),
    [
        (("method=full",), 0.002),
        # Autocast's bf16 copies of the weights are saved too; the plan counts them as weights.
        (("method=full", "training.precision=bf16"), 0.05),
        (("lora=r16_qv",), 0.002),
        (("lora=r16_qv", "lora.dropout=0"), 0.002),
        (("lora=r16_qv", "training.precision=bf16"), 0.03),
        (("lora=r16_all_linear",), 0.002),
        (("lora=r16_all_linear", "lora.dropout=0"), 0.002),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, tuple) else None,
)
def test_one_more_layer_keeps_what_the_plan_says(arguments, tolerance):
    config = single("model=tiny_llama", *arguments).config
    kept = kept_by_layer(config, config.model.architecture)
    measured = (saved_bytes(4, arguments) - saved_bytes(3, arguments)) / LENGTH
    assert kept.total == pytest.approx(measured, rel=tolerance)


def test_layers_below_the_first_adapter_keep_nothing():
    kept, measured = [], []
    for layer in (1, 3):
        arguments = (f"lora.layers_to_transform=[{layer}]", "lora.rank_pattern={v_proj:4}")
        config = single("model=tiny_llama", "model.architecture.layers=4", *arguments).config
        each = kept_by_layer(config, config.model.architecture)
        kept.append(each.total * reached_layers(config, config.model.architecture))
        measured.append(saved_bytes(4, arguments) / LENGTH)
    assert kept[0] - kept[1] == pytest.approx(measured[0] - measured[1], rel=0.002)


def test_the_plan_knows_the_chunk_of_the_loss():
    from launcher.plan import memory

    assert memory.LOSS_CHUNK == loss.CHUNK
