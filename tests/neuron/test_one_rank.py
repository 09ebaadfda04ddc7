"""The neuron engine with the real optimum-neuron where a model isn't split: its trainer, optimizer and model classes
run on a CPU, on stand-ins for torch_xla and AWS's modules (one_rank/). What the engine does with them is the torch
engine's training, step by step; test_trainer.py has the rest, with the real neuronx_distributed."""

from __future__ import annotations

import importlib.util
import json
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
