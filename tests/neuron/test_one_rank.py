"""The neuron engine with the real optimum-neuron where a model isn't split: its trainer, optimizer and model classes
run on a CPU, on stand-ins for torch_xla and AWS's modules (one_rank/). What the engine does with them is the torch
engine's training, step by step; test_trainer.py has the rest, with the real neuronx_distributed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.library_sets import neuron_source
from tests.neuron.runs import ROUNDING, Processes, assert_close, result
from tests.resuming import kill

ONE_RANK = Processes("one_rank")

neuron_source("optimum/neuron/version.py")  # skips, or fails in the set that has it
pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch_xla") is not None, reason="the real torch_xla is here")


@pytest.fixture
def processes() -> Processes:
    return ONE_RANK


def test_a_killed_run_goes_on_as_the_torch_engine_trains(
    fetched: Callable[..., Path], by_torch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed rows of several samples, two micro batches a step, a schedule that falls after a warm-up."""
    settings = ("method=full", "training.micro_batch_size=1")
    directory = fetched("killed", *settings)
    monkeypatch.setenv("TRNTUNE_FAULT", json.dumps(kill("open", r"step-6\.tmp/manifest\.json:w")))
    with pytest.raises(AssertionError):
        ONE_RANK.go_on(directory, 1)
    monkeypatch.delenv("TRNTUNE_FAULT")
    assert "going on after step 3" in ONE_RANK.go_on(directory, 1)
    assert_close(by_torch(*settings), directory)


RECOMPUTED = """
import stand_ins, torch
from optimum.neuron.models.training.config import TrainingNeuronConfig
from optimum.neuron.models.training.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM
from transformers import LlamaConfig
from trainer.engines.neuron import pipeline
from trainer.engines.neuron.batch import attention_bias

sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=11)
config = LlamaConfig(**sizes, attn_implementation="eager")
model = LlamaForCausalLM(config, TrainingNeuronConfig(tensor_parallel_size=1, recompute_causal_mask=False))
seen = []
forward = LlamaDecoderLayer.forward
LlamaDecoderLayer.forward = lambda self, *args, **kwargs: seen.append(self) or forward(self, *args, **kwargs)
ids = torch.arange(10).view(1, 10)
given = {"input_ids": ids, "labels": ids, "attention_mask": attention_bias(torch.zeros_like(ids), torch.float32)}
model(**given).loss.backward()
expected, once = [p.grad.clone() for p in model.parameters()], len(seen)
model.zero_grad()
pipeline.recompute(model)
model(**given).loss.backward()
assert once == 3 and len(seen) == 3 + 6, len(seen)
assert all(torch.allclose(p.grad, one) for p, one in zip(model.parameters(), expected, strict=True))
with torch.no_grad():
    model(**given)
assert len(seen) == 3 + 6 + 3, len(seen)
"""


def test_layers_of_stages_are_computed_again() -> None:
    """optimum-neuron's own switch is not read where stages are made."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command, env = [sys.executable, "-c", RECOMPUTED], {**ONE_RANK.environment(), **alone}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_replicas_stop_early_where_the_torch_engine_does(
    train: Callable[..., Path], by_torch: Callable[..., Path]
) -> None:
    """A replica has other labels than the other, and the best weights are what is saved."""
    early = ("training.early_stopping_patience=1", "training.eval_every=1", "method.learning_rate=0.1")
    settings = ("method=lora", "lora.dropout=0", *early)
    one, two = by_torch(*settings), train("two", 2, *settings, "parallelism=ddp2")
    assert_close(one, two)
    expected, found = result(one), result(two)
    assert expected["status"] == "early_stopped"
    for key in ("status", "steps", "best_step", "trainable_params"):
        assert found[key] == expected[key], key
    assert found["eval_loss_after"] == pytest.approx(expected["eval_loss_after"], rel=ROUNDING)
