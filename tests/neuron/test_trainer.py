"""The neuron engine with the real optimum-neuron: splitting a model changes no loss, a killed run goes on exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launcher.paths import ROOT
from tests.neuron.conftest import TP2, Curve, environment, go_on, kill_after_checkpoint, result

ROUNDING = 2e-6  # fp32, relative
BF16_ZERO = ("method=full", "training.precision=bf16", "parallelism.zero_1=true", "method.learning_rate=1e-3")

# torch_xla starts threads when it is imported: nothing can be forked of that.
pytestmark = pytest.mark.cold


def assert_close(one: Curve, other: Curve) -> None:
    assert one.steps.keys() == other.steps.keys()
    for step in one.steps:
        assert one.steps[step] == pytest.approx(other.steps[step], rel=ROUNDING), step
    assert one.held_out == pytest.approx(other.held_out, rel=ROUNDING)


@pytest.mark.parametrize(
    "settings",
    [("method=full",), ("method=lora", "lora.dropout=0", "lora.target_modules=[q_proj,v_proj,o_proj]")],
    ids=["full", "lora"],
)
def test_two_ranks_of_a_model_train_as_one(train: Callable[..., Path], settings: tuple[str, ...]) -> None:
    assert_close(Curve.read(train("one", 1, *settings)), Curve.read(train("two", 2, *settings, *TP2)))


def test_two_replicas_train_as_one_with_their_labels_counted_alike(train: Callable[..., Path]) -> None:
    settings = ("method=lora", "lora.dropout=0")
    one = Curve.read(train("one", 1, *settings))
    assert_close(one, Curve.read(train("two", 2, *settings, "parallelism=ddp2")))


@pytest.mark.parametrize("settings", [BF16_ZERO, ("method=lora",)], ids=["full-bf16-zero1", "lora-dropout"])
def test_a_killed_run_goes_on_exactly(
    train: Callable[..., Path], fetched: Callable[..., Path], settings: tuple[str, ...]
) -> None:
    straight = Curve.read(train("straight", 2, *settings, *TP2))
    directory = fetched("killed", *settings, *TP2)
    kill_after_checkpoint(directory, 2, step=3)
    assert "going on after step 3" in go_on(directory, 2)
    assert Curve.read(directory) == straight
    assert result(directory)["attempts"] == 2


def test_under_zero_1_the_schedule_is_followed_and_the_model_learns(train: Callable[..., Path]) -> None:
    held_out = Curve.read(train("run", 2, *BF16_ZERO, *TP2)).held_out
    assert held_out[6] < held_out[3] < held_out[0]


def test_what_was_saved_becomes_one_model_that_generates(train: Callable[..., Path]) -> None:
    directory = train("run", 2, "method=lora", "lora.target_modules=[q_proj,v_proj,o_proj]", *TP2)
    assert result(directory)["saved"] == "sharded"
    for stage in ("consolidate", "merge", "generate"):
        command = [sys.executable, "-m", "launcher.jobs.run_stage", stage, str(directory)]
        env = {**environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        subprocess.run(command, env=env, check=True, capture_output=True)
    ranks = sorted((directory / "sharded").rglob("*.safetensors"))
    halves = [load_file(path) for path in ranks]
    whole = load_file(directory / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    assert torch.equal(whole[name], torch.cat([half[name] for half in halves]))
    assert (directory / "merged" / "config.json").is_file()
