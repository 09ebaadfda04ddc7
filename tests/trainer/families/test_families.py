"""Every family of causal language models that transformers registers: trained exactly, or refused with a reason.

The loss and every gradient of a training step on packed rows, and on a document a row, against plain transformers
(eager attention) on each document alone, in fp32.
"""

from __future__ import annotations

import warnings
from dataclasses import fields

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from launcher.config.schema import ArchitectureConfig
from launcher.paths import ROOT
from trainer.data.collate import Collator
from trainer.data.tokenize import IGNORE, Example
from trainer.families.cases import cases
from trainer.families.experts import idle_parameters, looked_up
from trainer.families.pairs import attention_width, layer_extents
from trainer.families.small import with_attention
from trainer.families.table import Outcome, lines, outcome
from trainer.libraries.transformers_versions import MAJOR
from trainer.models.attention import DOCUMENT_ATTENTION
from trainer.models.causal_lm import MODEL_INPUTS, CausalLMLoss
from trainer.probes.model import facts

pytestmark = pytest.mark.long

LENGTHS = ((21, 6), (9, 0), (1, 0), (33, 30), (17, 3))
"""tokens of each document, and how many of them are the prompt; windows and chunks of the small models are 8 long"""


def documents() -> list[Example]:
    generator = torch.Generator().manual_seed(7)
    found = []
    for length, masked in LENGTHS:
        ids = torch.randint(3, 90, (length,), generator=generator).tolist()
        found.append(Example(ids, [IGNORE] * masked + ids[masked:]))
    return found


def without_chance(model: nn.Module) -> nn.Module:
    """For training, with every dropout and jitter at zero."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
        for name, value in list(vars(getattr(module, "config", object)).items()):
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module.config, name, 0.0)
    return model.train()  # layers hold the settings of their model's configuration, which copies take over


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Of every parameter, zero where it took no part; taken off the model."""
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def step_of_transformers(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Summed loss and gradients of the documents, each alone."""
    total = torch.zeros(())
    for example in documents():
        if len(example.input_ids) < 2:  # nothing to predict
            continue
        logits = model(torch.tensor([example.input_ids]), use_cache=False).logits[0, :-1].float()
        loss = cross_entropy(logits, torch.tensor(example.labels[1:]), reduction="sum")
        loss.backward()
        total += loss.detach()
    return total, gradients(model)


def our_step(model: nn.Module, found: Outcome, packed: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    examples = documents()
    rows = [examples[:3], examples[3:]] if packed else [[example] for example in examples]
    batch = Collator(56 if packed else 40, pad_token_id=0)(rows)
    attention = DOCUMENT_ATTENTION if packed or found.way.packed is None else found.way.attention
    model = without_chance(with_attention(model, attention))
    loss = CausalLMLoss(model, found.way)(**{name: batch[name] for name in MODEL_INPUTS})
    loss.backward()
    return loss.detach(), gradients(model)


def differences(found: Outcome, packed: bool, expected: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> list[str]:
    loss, grads = our_step(found.model, found, packed)
    where = f"{found.case}, {'packed' if packed else 'a document a row'}"
    wrong = []
    if not torch.allclose(loss, expected[0], rtol=2e-5):
        wrong.append(f"{where}: loss {loss:.6f}, not {expected[0]:.6f}")
    largest = max(float(grad.abs().max()) for grad in expected[1].values())
    for name, theirs in expected[1].items():
        scale = max(float(theirs.abs().max()), 1e-3 * largest)
        if not float((grads[name] - theirs).abs().max()) <= 1e-3 * scale:
            wrong.append(f"{where}: gradient of {name}")
            break
    return wrong


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [outcome(case) for case in cases()]


def test_a_training_step_of_every_family_is_that_of_transformers(outcomes):
    wrong = []
    for found in outcomes:
        if found.model is None or found.way.alone is not None:
            continue
        model = without_chance(found.model)
        expected = step_of_transformers(model)
        wrong += differences(found, False, expected)
        if found.way.packed is None:
            wrong += differences(found, True, expected)
    assert wrong == []


def test_every_family_that_is_trained_has_sizes_for_the_plan(outcomes):
    trained = [found for found in outcomes if found.model is not None and found.way.alone is None]
    for found in trained:
        sizes = ArchitectureConfig(**facts(found.model))
        numbers = [getattr(sizes, field.name) for field in fields(sizes) if field.type == "int"]
        assert len(numbers) == 8
        assert all(type(number) is int and number > 0 for number in numbers), found.case
        extents = layer_extents(found.model.config)
        assert len(extents) == sizes.layers, found.case
        active = looked_up(found.model) + idle_parameters(found.model, found.model.config.get_text_config())
        assert 0 < active < sum(parameter.numel() for parameter in found.model.parameters()) or sizes.tied_embeddings
    without = {found.case.family for found in trained if attention_width(found.model.config) == 0}
    # transformers 4.57 can't compute its small xLSTM.
    assert without == {"falcon_mamba", "mamba", "mamba2", "rwkv", *(["xlstm"] if MAJOR >= 5 else [])}


@pytest.mark.skipif(MAJOR < 5, reason="docs/models.md is of the newest set of libraries")
def test_the_table_of_families_is_what_is_found(outcomes):
    expected = "\n".join(lines(outcomes)) + "\n"
    assert (ROOT / "docs" / "models.md").read_text() == expected, "python -m trainer.families > docs/models.md"
