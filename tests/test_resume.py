"""A run that is ended by whatever and started again is bit for bit the run that was never ended: real processes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.run_dir.attempts import Attempts
from tests.resuming import (
    CHAINS,
    LORA,
    TWO,
    assert_same,
    at_line,
    committed,
    copy_without_result,
    kill,
    record,
    start,
    weights,
)
from trainer.checkpoints.manifest import from_text, to_text

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Runs that nothing disturbs, by their settings."""
    known: dict[tuple[str, ...], Path] = {}

    def of(*arguments: str) -> Path:
        if arguments not in known:
            directory = tmp_path_factory.mktemp("reference") / "run"
            run = start(directory, *arguments)
            assert run.process.returncode == 0, run.process.stderr
            known[arguments] = directory
        return known[arguments]

    return of


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_that_is_killed_again_and_again_is_the_run_that_was_not(name, reference, tmp_path):
    arguments, faults = CHAINS[name]
    directory = tmp_path / "run"
    for fault in faults:
        run = start(directory, *arguments, fault=fault)
        assert run.process.returncode == 1, (fault, run.process.stderr)
        assert not (directory / "stages" / "train.json").exists()
    last = start(directory, *arguments)
    assert last.process.returncode == 0, last.process.stderr
    assert "going on after step" in last.process.stderr
    assert_same(directory, reference(*arguments))
    assert last.result["attempts"] == len(faults) + 1
    assert last.result["lost_steps"] > 0
    assert committed(directory) == ["step-12", "step-9"]
    *outcomes, end = [attempt.outcome for attempt in Attempts(directory / "attempts.jsonl").read()]
    # A rank whose peer is killed may still say that it failed; or torchrun tells it to leave before it has noticed.
    assert set(outcomes) <= {"died", "failed", *(["suspended"] if arguments == TWO else [])}
    assert end == "finished"


def test_a_finished_run_that_is_started_again_does_nothing(reference, tmp_path):
    directory = reference(*LORA)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.name != "run.lock"}
    run = start(directory, *LORA)
    assert run.process.returncode == 0, run.process.stderr
    assert "stage train has finished already" in run.process.stderr
    assert "trainable parameters" in run.process.stdout
    after = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.name != "run.lock"}
    assert {path for path in after if after[path] != before.get(path) and path.is_file()} == set()


@pytest.mark.parametrize(
    ("arguments", "number", "step"),
    [(LORA, signal.SIGTERM, 4), (TWO, signal.SIGUSR2, 2)],
    ids=["SIGTERM", "SIGUSR2, two processes"],
)
def test_a_run_that_is_told_to_leave_saves_at_once_and_goes_on_without_a_lost_step(
    arguments, number, step, reference, tmp_path
):
    """SIGTERM comes as step 4 ends, at which an evaluation is due: there may be no time for it."""
    directory = tmp_path / "run"
    # The signal comes while a step's line is written, so that the next step still ends.
    run = start(directory, *arguments, fault=at_line(step, number))
    assert run.process.returncode == 75, run.process.stderr
    assert f"stopped after step {step}: run/checkpoints/step-{step} is saved" in run.process.stderr
    assert "Traceback" not in run.process.stderr
    assert "FAILED" not in run.process.stderr
    assert not (directory / "adapter").exists()
    again = start(directory, *arguments)
    assert again.process.returncode == 0, again.process.stderr
    assert_same(directory, reference(*arguments))
    assert again.result["lost_steps"] == 0
    assert again.result["attempts"] == 2


def test_ctrl_c_saves_what_was_reached_and_the_run_can_go_on(reference, tmp_path):
    directory = tmp_path / "run"
    run = start(directory, *LORA, fault=at_line(5, signal.SIGINT))
    assert run.process.returncode == 130, run.process.stderr
    assert run.result["status"] == "interrupted"
    assert (directory / "adapter" / "adapter_model.safetensors").exists()
    again = start(directory, *LORA)
    assert again.process.returncode == 0, again.process.stderr
    assert_same(directory, reference(*LORA))


def test_a_broken_checkpoint_is_told_of_and_the_one_before_it_is_used(reference, tmp_path):
    directory = copy_without_result(reference(*LORA), tmp_path / "run")
    broken = directory / "checkpoints" / "step-12" / "optimizer.safetensors"
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    run = start(directory, *LORA)
    assert run.process.returncode == 0, run.process.stderr
    [warning] = [line for line in run.process.stderr.splitlines() if line.startswith("warning:")]
    assert "step-12 can't be used: optimizer.safetensors is damaged" in warning
    assert "going on after step 9" in run.process.stderr
    assert_same(directory, reference(*LORA))
    assert committed(directory) == ["step-12", "step-12.invalid", "step-9"]


def test_no_checkpoint_left_is_an_error_and_nothing_is_trained(reference, tmp_path):
    directory = copy_without_result(reference(*LORA), tmp_path / "run")
    for step in (9, 12):
        (directory / "checkpoints" / f"step-{step}" / "run.json").unlink()
    before = record(directory)
    run = start(directory, *LORA)
    assert run.process.returncode == 1
    [line] = [line for line in run.process.stderr.splitlines() if line.startswith("error:")]
    assert "no checkpoint can be used (step-12: run.json is missing; step-9: run.json is missing)" in line
    assert "remove run/checkpoints" in line
    assert record(directory) == before
    assert committed(directory) == ["step-12", "step-9"]


def test_a_checkpoint_of_another_base_model_is_not_used(reference, tmp_path):
    """The adapter's weights mean nothing on other base weights."""
    directory = copy_without_result(reference(*LORA), tmp_path / "run")
    for step in (9, 12):
        file = directory / "checkpoints" / f"step-{step}" / "manifest.json"
        known = from_text(file.read_text())
        other = {**known.identity, "base": "sampled-sha256-v1:0"}
        file.write_text(to_text(replace(known, identity=other)))
    run = start(directory, *LORA)
    assert run.process.returncode == 1
    assert "it is of another run: base is sampled-sha256-v1:0 there" in run.process.stderr


def test_more_steps_for_a_finished_run(reference, tmp_path):
    """Changed settings are refused with the difference, and taken when they are named."""
    directory = shutil.copytree(reference(*LORA), tmp_path / "run")
    longer = (*LORA, "training.max_steps=14", "training.scheduler=constant")
    refused = start(directory, *longer)
    assert refused.process.returncode == 2
    assert "training.max_steps: 12 there, 14 here; training.scheduler: linear there, constant here" in (
        refused.process.stderr
    )
    allowed = "training.allow_config_change=[training.max_steps,training.scheduler]"
    assert allowed in refused.process.stderr
    assert (directory / "stages" / "train.json").exists()

    run = start(directory, *longer, allowed)
    assert run.process.returncode == 0, run.process.stderr
    assert run.result["steps"] == 14
    assert "going on after step 12" in run.process.stderr
    steps = run.metrics("train")
    assert [each["step"] for each in steps] == list(range(1, 15))
    assert steps[-1]["learning_rate"] == pytest.approx(0.001)
    changes = json.loads((directory / ".hydra" / "changes.jsonl").read_text())["changes"]
    assert {"key": "training.max_steps", "before": 12, "after": 14} in changes
    # The new settings are the run's from here on.
    once_more = start(directory, *longer)
    assert once_more.process.returncode == 0
    assert "has finished already" in once_more.process.stderr


def test_two_processes_go_on_as_one_only_when_that_is_wanted(reference, tmp_path):
    """Without dropout, which each process draws for itself, the losses are those of the other world size too."""
    same = ("lora.dropout=0",)
    two = reference(*same, "parallelism=ddp2")
    directory = copy_without_result(two, tmp_path / "run")
    shutil.rmtree(directory / "checkpoints" / "step-12")
    refused = start(directory, *same)
    assert refused.process.returncode == 2
    assert "parallelism.data_parallel: 2 there, 1 here" in refused.process.stderr
    run = start(directory, *same, "training.allow_config_change=[parallelism]")
    assert run.process.returncode == 0, run.process.stderr
    assert "going on after step 9" in run.process.stderr
    expected = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in expected if line["event"] == "train"]
    assert [line["loss"] for line in run.metrics("train")] == pytest.approx(losses, rel=2e-5)
    ids = [line["sample_ids"] for line in expected if line["event"] == "train"]
    assert [line["sample_ids"] for line in run.metrics("train")] == ids


def test_a_manifest_with_another_world_size_is_not_used(reference, tmp_path):
    directory = copy_without_result(reference(*LORA), tmp_path / "run")
    file = directory / "checkpoints" / "step-12" / "manifest.json"
    known = from_text(file.read_text())
    file.write_text(to_text(replace(known, world=replace(known.world, size=4, data_parallel=4))))
    run = start(directory, *LORA)
    assert run.process.returncode == 0, run.process.stderr
    assert "step-12 can't be used: it was written by 4 processes, this run has 1" in run.process.stderr
    assert_same(directory, reference(*LORA))


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB, as large as a few checkpoints of the tiny model."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can only be mounted by root with its capabilities")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_costs_a_warning_and_no_good_checkpoint(small_disk, reference, tmp_path):
    """The disk fills up: at first a checkpoint can't be written any more, then nothing can."""
    directory = small_disk / "run"
    run = start(directory, *LORA, "training.keep_checkpoints=9", fault=kill("rename", r"step-6\.tmp$"))
    assert run.process.returncode == 1
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"0" * 4096)
    os.truncate(filler, filler.stat().st_size - 60_000)
    refused = start(directory, *LORA, "training.keep_checkpoints=9")
    assert refused.process.returncode == 1
    assert "error: nothing is trained: " in refused.process.stderr
    assert "make room, lower training.keep_checkpoints" in refused.process.stderr
    # From here on as if it had filled up only when training had begun.
    force = (*LORA, "training.keep_checkpoints=9", "plan.force=true")
    full = start(directory, *force)
    assert "No space left on device" in full.process.stderr
    assert "the newest good one is step-" in full.process.stderr
    assert "Traceback" not in full.process.stderr
    assert full.process.returncode == 1
    assert [name for name in committed(directory) if name.endswith(".tmp")] == []
    with suppress(OSError), filler.open("ab", buffering=0) as stream:
        while True:
            stream.write(b"0" * 512)
    fuller = start(directory, *force)
    assert fuller.process.returncode == 1
    assert "Traceback" not in fuller.process.stderr
    assert "No space left on device" in fuller.process.stderr
    filler.unlink()
    last = start(directory, *LORA, "training.keep_checkpoints=9")
    assert last.process.returncode == 0, last.process.stderr
    assert record(directory) == record(reference(*LORA))
    assert weights(directory) == weights(reference(*LORA))


def test_a_directory_that_turns_read_only_costs_a_warning(reference, tmp_path):
    """Every file operation on checkpoints fails from the second one on, as on a file system remounted read-only."""
    directory = tmp_path / "run"
    fault = {"op": "mkdir", "path": r"checkpoints/step-(6|9)\.tmp$", "from": 1, "errno": errno.EROFS}
    run = start(directory, *LORA, fault=fault)
    assert run.process.returncode == 0, run.process.stderr
    assert "checkpoint step-6 was not written: [Errno 30] Read-only file system" in run.process.stderr
    assert "the newest good one is step-3" in run.process.stderr
    assert committed(directory) == ["step-12", "step-3"]
    assert run.result["checkpoints"]["failed"] == 2
    assert [line["failure"] for line in run.metrics("checkpoint") if "failure" in line]
    assert record(directory) == record(reference(*LORA))


def test_metrics_that_do_not_reach_the_disk_cost_the_checkpoint_and_not_the_training(reference, tmp_path):
    """Training itself never waits for the disk: what is not there yet fails the save, in its own thread."""
    directory = tmp_path / "run"
    fault = {"op": "fsync", "path": r"metrics\.jsonl$", "count": 1, "errno": errno.EIO}
    run = start(directory, *LORA, fault=fault)
    assert run.process.returncode == 0, run.process.stderr
    assert "checkpoint step-3 was not written: [Errno 5]" in run.process.stderr
    assert committed(directory) == ["step-12", "step-9"]
    assert record(directory) == record(reference(*LORA))
