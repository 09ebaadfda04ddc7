"""A run that is ended by whatever and started again is bit for bit the run that was never ended: real processes."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from launcher.paths import ROOT
from launcher.run_dir.attempts import Attempts
from tests.conftest import TINY, Run, command, environment, launch
from tests.limits import PATIENCE, until
from trainer.checkpoints.manifest import from_text, to_text

pytestmark = pytest.mark.long

# Twelve steps of two micro batches: 40 examples make a pass of four, so that most steps lie inside one.
SETTINGS = (
    *TINY,
    "tracking=none",
    "tracking.samples=1",
    "training.max_steps=12",
    "training.epochs=5",
    "training.global_batch_size=4",
    "training.eval_every=4",
    "training.save_every=3",
)
DROPOUT = "lora.dropout=0.2"
LORA, FULL, TWO = (DROPOUT,), ("method=full",), (DROPOUT, "parallelism=ddp2")
BESIDE = (
    *(DROPOUT, "lora.target_modules=[all-linear]", "lora.rank_pattern={q_proj:4}", "lora.layers_to_transform=[1]"),
    *("lora.modules_to_save=[model.norm,layers.0.input_layernorm]", "lora.trainable_token_indices=[65,66]"),
    "lora.quantize_base=nf4",
)
EARLY = ("training.early_stopping_patience=5",)


def kill(op: str, path: str, count: int = 1, number: int = signal.SIGKILL) -> dict[str, Any]:
    return {"op": op, "path": path, "count": count, "signal": int(number)}


def at_line(count: int, number: int = signal.SIGKILL) -> dict[str, Any]:
    """As the line of this number is about to be written. A process that begins at step 0 writes the evaluation of the
    untrained model, then a line a step, until a save or an evaluation adds one."""
    return kill("open", r"metrics\.jsonl:a$", count, number)


def start(directory: Path, *arguments: str, fault: dict[str, Any] | None = None, timeout: float = PATIENCE) -> Run:
    """launch.py on the run directory, with a fault in whichever of its processes comes to it."""
    env = environment()
    if fault is not None:
        env |= {"TRNTUNE_FAULT": json.dumps(fault), "PYTHONPATH": str(ROOT / "tests" / "faults")}
    arguments = (*SETTINGS, f"hydra.run.dir={directory}", *arguments)
    process = subprocess.run(
        command(*arguments), cwd=directory.parent, env=env, capture_output=True, text=True, timeout=timeout
    )
    return Run(directory, process)


def record(directory: Path) -> list[tuple[Any, ...]]:
    """What a run did, in order, without its times."""
    keys = ("event", "step", "epoch", "loss", "learning_rate", "grad_norm", "sample_ids", "eval_loss", "tokens")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [tuple(repr(line.get(key)) for key in keys) for line in lines if line["event"] != "checkpoint"]


def weights(directory: Path) -> bytes:
    [file] = [*directory.glob("adapter/*.safetensors"), *directory.glob("model/*.safetensors")]
    return file.read_bytes()


def assert_same(directory: Path, reference: Path) -> None:
    assert record(directory) == record(reference)
    assert weights(directory) == weights(reference)
    assert (directory / "samples.jsonl").read_bytes() == (reference / "samples.jsonl").read_bytes()
    result, expected = (json.loads((d / "stages" / "train.json").read_text()) for d in (directory, reference))
    times = (
        "seconds",
        "per_second",
        "flops",
        "memory",
        "mfu",
        "attempts",
        "checkpoints",
        "lost_steps",
        "cost",
        "instances",
    )
    for key in expected:
        if not any(part in key for part in times):
            assert result[key] == expected[key], key


def committed(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


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


# One chain of faults: each line ends one attempt. An attempt that goes on writes no line for step 0.
CHAINS = {
    "lora": (
        LORA,
        [at_line(3), at_line(3), kill("fsync", r"step-6\.tmp/optimizer"), kill("rename", r"step-9\.tmp$"), at_line(3)],
    ),
    "full, early stopping, rows that are streamed": (
        (*FULL, *EARLY, "dataset.streaming=true"),
        [at_line(8), kill("open", r"step-9\.tmp/manifest\.json:w"), kill("mkdir", r"step-12\.tmp$")],
    ),
    "what peft trains beside its matrices, on a base in 4 bit": (
        BESIDE,
        [at_line(5), kill("rename", r"step-6\.tmp$")],
    ),
    "two processes": (
        TWO,
        [at_line(5), kill("fsync", r"step-6\.tmp/rng-00001"), kill("fsync", r"checkpoints$", 2)],
    ),
}


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


def test_ctrl_c_saves_what_was_reached_and_the_run_can_go_on(reference, tmp_path):
    directory = tmp_path / "run"
    run = start(directory, *LORA, fault=at_line(5, signal.SIGINT))
    assert run.process.returncode == 130, run.process.stderr
    assert run.result["status"] == "interrupted"
    assert (directory / "adapter" / "adapter_model.safetensors").exists()
    again = start(directory, *LORA)
    assert again.process.returncode == 0, again.process.stderr
    assert_same(directory, reference(*LORA))


def copy_without_result(source: Path, target: Path) -> Path:
    """A run as if it had been killed after its last checkpoint."""
    shutil.copytree(source, target)
    (target / "stages" / "train.json").unlink()
    shutil.rmtree(target / "adapter")
    return target


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


def wait_for_step(directory: Path, step: int, process: subprocess.Popen[str]) -> None:
    metrics = directory / "metrics.jsonl"
    until(lambda: process.poll() is not None or (metrics.exists() and f'"step": {step},' in metrics.read_text()))
    assert process.poll() is None, process.communicate()


def test_a_second_process_on_the_directory_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    directory = tmp_path / "run"
    long = ("training.max_steps=5000", "training.epochs=5000", "training.save_every=null", "training.eval_every=null")
    arguments = command(*SETTINGS, f"hydra.run.dir={directory}", *long)
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL, text=True)
    wait_for_step(directory, 3, process)
    second = start(directory, *long)
    assert second.process.returncode == 1
    host = socket.gethostname()
    holder = f"process {process.pid} on {host} (launch.py)"
    assert second.process.stderr == f"error: run: {holder} works in this directory; wait for its end, or end it\n"
    # The launcher is killed; its stage hears of it, saves and ends, and until then holds the directory.
    stage = json.loads((directory / "run.lock").read_text())[-1]["pid"]
    os.kill(stage, signal.SIGSTOP)
    process.kill()
    process.wait(timeout=PATIENCE)
    third = start(directory, *long)
    assert third.process.returncode == 1
    assert f"process {stage} on {host} (stage train) works in this directory" in third.process.stderr
    os.kill(stage, signal.SIGCONT)
    until(lambda: not psutil.pid_exists(stage) or psutil.Process(stage).status() == psutil.STATUS_ZOMBIE)
    [saved] = committed(directory)
    assert int(saved.removeprefix("step-")) >= 3
    # Nobody is left: the lock of the dead is not in the way.
    again = start(directory, *long, fault=at_line(1, signal.SIGTERM))
    assert again.process.returncode == 75, again.process.stderr
    assert f"going on after step {saved.removeprefix('step-')}" in again.process.stderr


def test_resume_names_a_directory_and_needs_no_other_argument(tmp_path):
    directory = tmp_path / "run"
    assert start(directory, *LORA, fault=at_line(4, signal.SIGTERM)).process.returncode == 75
    again = launch(tmp_path, f"resume={directory}")
    assert again.returncode == 0, again.stderr
    assert "going on after step 4" in again.stderr
    assert json.loads((directory / "stages" / "train.json").read_text())["steps"] == 12
    nothing = launch(tmp_path, "resume=nowhere")
    assert nothing.returncode == 2
    assert nothing.stderr == "error: resume=nowhere: there is no run or sweep in it\n"


def test_a_sweep_that_is_started_again_does_only_what_is_missing(tmp_path):
    sweep = tmp_path / "sweep"
    arguments = ("-m", *SETTINGS, "method=lora,full", f"hydra.sweep.dir={sweep}")
    env = environment() | {
        "TRNTUNE_FAULT": json.dumps(kill("rename", r"method=full/.*step-6\.tmp$")),
        "PYTHONPATH": str(ROOT / "tests" / "faults"),
    }
    first = subprocess.run(command(*arguments), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert first.returncode == 1
    again = launch(tmp_path, f"resume={sweep}")
    assert again.returncode == 0, again.stderr
    assert "0_method=lora: stage train has finished already" in again.stderr
    assert "going on after step 3" in again.stderr
    assert "FPFT against PEFT" in again.stdout
    assert [run["exit_code"] for run in json.loads((sweep / "sweep.json").read_text())["runs"]] == [0, 0]


def test_in_mlflow_a_run_that_goes_on_stays_one_run(tmp_path):
    import mlflow

    directory = tmp_path / "run"
    arguments = (*(each for each in SETTINGS if each != "tracking=none"), f"hydra.run.dir={directory}")
    env = environment() | {
        "TRNTUNE_FAULT": json.dumps(at_line(4, signal.SIGTERM)),
        "PYTHONPATH": str(ROOT / "tests" / "faults"),
    }
    first = subprocess.run(command(*arguments), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert first.returncode == 75, first.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    [experiment] = client.search_experiments(filter_string="name = 'trntune'")
    [stopped] = client.search_runs([experiment.experiment_id])
    assert stopped.info.status == "KILLED"
    again = launch(tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    assert "warning" not in again.stderr
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (stopped.info.run_id, "FINISHED")
    steps = sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "loss"))
    assert steps == list(range(1, 13))
    assert run.data.metrics["attempts"] == 2
