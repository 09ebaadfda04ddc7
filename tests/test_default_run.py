"""The README's first command with the real model, the real data and the defaults, of whose 16 steps it takes 8."""

from __future__ import annotations

import json

import pytest

from launcher.cli import parse
from launcher.config.compose import compose
from launcher.plan.build import known, preflight
from tests.conftest import launch
from tests.limits import PATIENCE


def planned_bytes(*arguments: str) -> float:
    """Memory that the plan of a command line says."""
    config = compose(parse(list(arguments))).runs[0].config
    facts, _ = known(config)
    return preflight(config, facts).memory.total


@pytest.mark.cold
@pytest.mark.long
@pytest.mark.timeout(4 * PATIENCE)
def test_the_default_run_lowers_the_held_out_loss_clearly_within_its_memory(tmp_path):
    directory = tmp_path / "run"
    # Half of the default's steps and of its held-out rows: the others only take time.
    arguments = ("method=lora", "training.max_steps=8", "dataset.eval_samples=16")
    process = launch(tmp_path, *arguments, f"hydra.run.dir={directory}", timeout=4 * PATIENCE)
    assert process.returncode == 0, process.stderr
    result = json.loads((directory / "stages" / "train.json").read_text())
    assert result["steps"] == 8
    assert result["total_params"] == 134_515_008
    assert result["trainable_params"] == 921_600
    assert result["eval_loss_after"] < result["eval_loss_before"] - 0.25
    assert result["peak_memory_bytes"] < 6e9
    assert planned_bytes(*arguments) == pytest.approx(result["peak_memory_bytes"], rel=0.15)
    samples = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3
    assert all(sample["after"] and sample["after"] != sample["before"] for sample in samples)
    assert (directory / "adapter" / "adapter_config.json").exists()
