"""The plan's memory against real runs on this CPU. Its time is a benchmark: python -m benchmarks.plan.

The real model's memory is compared where it is run anyway: tests/test_default_run.py.
"""

from __future__ import annotations

import json

import pytest

from benchmarks.plan import Case
from launcher.plan.build import known, preflight
from tests.conftest import Run, launch
from tests.launcher.conftest import single


@pytest.mark.cold
@pytest.mark.parametrize("method", ["lora", "full"])
def test_memory_is_what_the_plan_says(tmp_path, method):
    arguments = Case("13m", method).overrides(steps=3)  # the optimizer's state is there from the first step on
    config = single(*arguments).config
    facts, _ = known(config)
    planned = preflight(config, facts).memory.total
    run = Run(tmp_path / "run", launch(tmp_path, *arguments, f"hydra.run.dir={tmp_path}/run"))
    assert run.process.returncode == 0, run.process.stderr
    assert planned == pytest.approx(run.result["peak_memory_bytes"], rel=0.15)
    assert planned == json.loads((run.directory / "plan.json").read_text())["memory_bytes"]["total"]


@pytest.mark.cold
@pytest.mark.parametrize("layout", ["fsdp2", "tp2"])
def test_memory_of_a_model_in_parts_is_what_the_plan_says(tmp_path, layout):
    arguments = (*Case("13m", "full").overrides(steps=3), f"parallelism={layout}")
    config = single(*arguments).config
    planned = preflight(config, known(config)[0]).memory.total
    run = Run(tmp_path / "run", launch(tmp_path, *arguments, f"hydra.run.dir={tmp_path}/run"))
    assert run.process.returncode == 0, run.process.stderr
    assert 2 * planned == pytest.approx(run.result["peak_memory_bytes"], rel=0.15)  # of both processes
