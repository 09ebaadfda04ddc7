"""How an attempt ends that can't go on as it was, and what is left of it then: real processes."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launcher.paths import ROOT
from tests.conftest import command, environment
from tests.limits import PATIENCE
from tests.resuming import (
    LORA,
    SETTINGS,
    committed,
    kill,
    start,
    wait_for_step,
)

pytestmark = pytest.mark.long


def test_a_run_that_is_told_to_leave_after_its_last_step_has_lost_none(tmp_path):
    """As the adapter is written, which is followed by evaluation and answers; no step of 3 is the last one."""
    directory, short = tmp_path / "run", ("training.max_steps=4", "training.eval_every=null")
    leave = {"op": "mkdir", "path": r"adapter\.tmp$", "count": 1, "signal": int(signal.SIGTERM)}
    run = start(directory, *LORA, *short, fault=leave)
    assert run.process.returncode == 75, run.process.stderr
    assert committed(directory) == ["step-3", "step-4"]
    again = start(directory, *LORA, *short)
    assert again.process.returncode == 0, again.process.stderr
    assert "going on after step 4" in again.process.stderr
    assert [each["step"] for each in again.metrics("train")] == [1, 2, 3, 4]
    assert again.result["lost_steps"] == 0


MERGED = ("stages=[fetch,train,merge]", "merge.logits=false")


def merged(directory: Path) -> bytes:
    return (directory / "merged" / "model.safetensors").read_bytes()


def test_what_was_made_from_older_weights_has_not_finished(tmp_path):
    """Neither a merge that was killed, which left nothing, nor one from before more was trained."""
    directory, reference = tmp_path / "run", tmp_path / "reference"
    longer = (*LORA, "training.max_steps=6", "training.eval_every=null", "training.scheduler=constant")
    short = (*longer, "training.max_steps=3")
    allowed = "training.allow_config_change=[training.max_steps]"
    assert start(directory, *short, *MERGED).process.returncode == 0
    before = merged(directory)
    assert start(directory, *longer, "stages=[fetch,train]", allowed).process.returncode == 0
    killed = start(directory, *longer, *MERGED, fault=kill("rename", r"merged\.tmp$"))
    assert killed.process.returncode == 1
    last = start(directory, *longer, *MERGED)
    assert last.process.returncode == 0, last.process.stderr
    assert "stage train has finished already" in last.process.stderr
    assert "stage merge has finished already" not in last.process.stderr
    assert start(reference, *longer, *MERGED).process.returncode == 0
    assert merged(directory) == merged(reference) != before


def test_a_step_that_gives_no_number_stops_with_the_last_good_state_and_is_not_tried_for_ever(tmp_path):
    directory = tmp_path / "run"
    broken = ("method=full", "training.learning_rate=1e30", "training.warmup_steps=0")
    for _ in range(3):
        run = start(directory, *broken)
        assert run.process.returncode == 1
        [line] = [line for line in run.process.stderr.splitlines() if line.startswith("error:")]
        found = re.search(r"step (\d+): the (loss|gradient norm) is \S+, so the weights were not updated", line)
        assert found, line
        good = int(found[1]) - 1
        assert f"the last good state is run/checkpoints/step-{good}" in line
        assert re.search(r"lines \d+(, \d+)+ of the data set", line)
        assert committed(directory)[-1] == f"step-{good}"
        [weights_file] = (directory / "checkpoints" / f"step-{good}").glob("weights/*.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(weights_file).values())
    refused = start(directory, *broken)
    assert refused.process.returncode == 1
    assert f"3 attempts in a row got no further than step {good}; the last one failed" in refused.process.stderr
    assert "It is not tried again" in refused.process.stderr
    # Another learning rate is another attempt.
    better = (broken[0], "training.learning_rate=1e-6", broken[2])
    changed = start(directory, *better, "training.allow_config_change=[training.learning_rate]")
    assert f"going on after step {good}" in changed.process.stderr


@pytest.mark.parametrize(("steps", "told"), [(1, "after the last step "), (3, "step 2: the loss is nan")])
def test_weights_that_an_update_broke_are_never_a_good_state(steps, told, tmp_path):
    """The loss and the gradient of that step were numbers: only the weights tell."""
    directory = tmp_path / "run"
    broken = ("method=full", "training.learning_rate=1e38", "training.warmup_steps=0", "training.eval_every=null")
    every = ("training.save_every=1", "training.keep_checkpoints=1", "tracking.skip_steps=0")
    run = start(directory, *broken, *every, f"training.max_steps={steps}")
    assert run.process.returncode == 1, run.process.stderr
    assert "checkpoint step-1 was not written: " in run.process.stderr
    [line] = [line for line in run.process.stderr.splitlines() if line.startswith("error:")]
    assert told in line
    assert line.endswith("none is saved")
    assert committed(directory) == []
    assert not (directory / "model").exists()


def test_told_to_leave_and_unable_to_save_is_a_failure(tmp_path):
    directory = tmp_path / "run"
    fault = {"op": "mkdir", "path": r"checkpoints/step-\d+\.tmp$", "from": 1, "errno": errno.ENOSPC}
    process = subprocess.Popen(
        command(*SETTINGS, f"hydra.run.dir={directory}", "training.max_steps=5000", "training.epochs=5000"),
        cwd=tmp_path,
        env=environment() | {"TRNTUNE_FAULT": json.dumps(fault), "PYTHONPATH": str(ROOT / "tests" / "faults")},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(directory, 5, process)
    process.send_signal(signal.SIGUSR2)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, stderr
    [line] = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert "was not written" in line
    assert "No space left on device" in line
