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


def test_parts_in_host_memory_are_counted_there_and_not_on_the_device():
    arguments = ("model=llama3_8b", "accelerator=cuda", "method=full", "parallelism=fsdp2", "training.precision=bf16")
    device, host = (
        preflight(config, known(config)[0])
        for config in (single(*arguments, *more).config for more in ((), ("parallelism.cpu_offload=true",)))
    )
    there, here = device.memory, host.memory
    parts = 16 * host.parameters.total / 2  # parameters, gradients, two moments: fp32
    assert there.total - here.total == pytest.approx(parts, rel=0.1)
    assert (there.host, there.host_available, here.optimizer) == (0, None, 0)
    # Beside them the copy that a checkpoint is written from; a part in pinned memory takes a power of two.
    assert parts * 28 / 16 < here.host < parts * 36 / 16
    assert here.host_available is not None
    asks_too_much = [note for note in host.notes if "host memory need more" in note]
    assert bool(asks_too_much) == (here.host > here.host_available)


@pytest.mark.cold
@pytest.mark.parametrize("layout", ["fsdp2", "tp2"])
def test_memory_of_a_model_in_parts_is_what_the_plan_says(tmp_path, layout):
    arguments = (*Case("13m", "full").overrides(steps=3), f"parallelism={layout}")
    config = single(*arguments).config
    planned = preflight(config, known(config)[0]).memory.total
    run = Run(tmp_path / "run", launch(tmp_path, *arguments, f"hydra.run.dir={tmp_path}/run"))
    assert run.process.returncode == 0, run.process.stderr
    assert 2 * planned == pytest.approx(run.result["peak_memory_bytes"], rel=0.15)  # of both processes
