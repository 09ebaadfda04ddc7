"""Whole runs, as a user starts them: launch.py in a process of its own, on two random layers."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import TINY, Run, command, environment, launch
from tests.limits import PATIENCE, until

pytestmark = pytest.mark.long

NO_TRACKING = "tracking=none"


def test_a_lora_run_leaves_a_complete_directory_and_an_adapter_that_gives_the_reported_loss(run_tiny):
    run = run_tiny("run", "lora.dropout=0.1")
    assert run.process.returncode == 0, run.process.stderr
    result = run.result
    assert result["status"] == "finished"
    assert result["steps"] == 6
    assert result["trainable_params"] == 2 * (16 * (64 + 64) + 16 * (64 + 32))
    assert [record["step"] for record in run.metrics("train")] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in run.metrics("eval")] == [0, 3, 6]
    assert run.metrics("eval")[-1]["eval_loss"] == result["eval_loss_after"]
    assert result["measured_steps"] == 4
    parts = sum(value for key, value in result.items() if key.endswith("_seconds") and key.split("_")[0] in PARTS)
    assert parts == pytest.approx(result["wall_seconds"], rel=0.1)

    for piece in ("trainable parameters", "samples a second", "held-out loss", "Question 1", "before", "after"):
        assert piece in run.process.stdout
    assert "mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db" in run.process.stdout
    assert loss_by_transformers(run.directory, adapter=True) == pytest.approx(result["eval_loss_after"], rel=1e-5)


PARTS = {"load", "data", "compile", "train", "eval", "sample", "save"}


def loss_by_transformers(run_directory: Path, adapter: bool) -> float:
    """The held-out loss of what was saved, by plain transformers and peft, one example at a time."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from launcher.run_dir.layout import RunDir
    from trainer.data.prepare import prepare

    kind, where = (AutoPeftModelForCausalLM, "adapter") if adapter else (AutoModelForCausalLM, "model")
    model = kind.from_pretrained(run_directory / where).eval()
    tokenizer = AutoTokenizer.from_pretrained(run_directory / where)
    run_dir = RunDir(run_directory)
    fetched = run_dir.stage_result("fetch")
    data = prepare(run_dir.load_config(), Path(fetched["dataset_path"]), tokenizer)
    total, count = 0.0, 0
    for example in [example for row in data.eval for example in row]:
        with torch.no_grad():
            logits = model(torch.tensor([example.input_ids])).logits[0, :-1].float()
        targets = torch.tensor(example.labels[1:])
        total += float(cross_entropy(logits, targets, reduction="sum"))
        count += int((targets != -100).sum())
    return total / count


def test_a_full_run_saves_a_model_that_gives_the_reported_loss(run_tiny):
    run = run_tiny("run", "method=full", NO_TRACKING, "dataset.packing=false", "dataset.prompt=chat")
    assert run.process.returncode == 0, run.process.stderr
    assert run.result["trainable_params"] == run.result["total_params"]
    assert run.result["padding_fraction"] > 0.3  # one example in each row of 512
    assert run.result["eval_loss_after"] < run.result["eval_loss_before"]
    assert not (run.directory / "adapter").exists()
    assert json.loads((run.directory / "model" / "config.json").read_text())["model_type"] == "llama"
    assert loss_by_transformers(run.directory, adapter=False) == pytest.approx(run.result["eval_loss_after"], rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_give_the_losses_of_one_with_the_same_global_batch(run_tiny, method):
    same = [f"method={method}", NO_TRACKING, "training.global_batch_size=4", "training.epochs=2", "tracking.samples=0"]
    # Dropout masks are drawn on each process, so they can't be those of one.
    same += ["lora.dropout=0"] if method == "lora" else []
    one = run_tiny("one", *same)
    two = run_tiny("two", *same, "parallelism=ddp2")
    assert one.process.returncode == 0, one.process.stderr
    assert two.process.returncode == 0, two.process.stderr
    # Warm-up of one step, six in all: no step is lost to a learning rate of 0.
    assert [round(r["learning_rate"] / one.metrics("train")[0]["learning_rate"], 6) for r in one.metrics("train")] == [
        1.0, 1.0, 0.8, 0.6, 0.4, 0.2,
    ]  # fmt: skip
    for event, key in (("train", "loss"), ("train", "grad_norm"), ("eval", "eval_loss"), ("train", "learning_rate")):
        assert [r[key] for r in two.metrics(event)] == pytest.approx([r[key] for r in one.metrics(event)], rel=2e-5)
    # Each example is counted once, whoever computes it, and only one process writes.
    ours, theirs = one.result, two.result
    assert theirs["samples_per_second"] * theirs["measured_seconds"] == pytest.approx(
        ours["samples_per_second"] * ours["measured_seconds"]
    )
    assert theirs["samples_per_second_per_replica"] == pytest.approx(theirs["samples_per_second"] / 2)
    assert two.process.stderr.count("held-out loss before training") == 1
    assert len(two.metrics("train")) == 6


def test_early_stopping_stops_and_keeps_the_best_weights(run_tiny):
    run = run_tiny(
        "run",
        NO_TRACKING,
        "method=full",
        "training.max_steps=40",
        "training.epochs=20",
        "training.learning_rate=0.3",
        "training.scheduler=constant",
        "training.eval_every=1",
        "training.early_stopping_patience=3",
    )
    assert run.process.returncode == 0, run.process.stderr
    losses = {record["step"]: record["eval_loss"] for record in run.metrics("eval")[1:]}
    best = min((record["step"] for record in run.metrics("eval") if record["step"] > 0), key=lambda s: losses[s])
    assert run.result["status"] == "early_stopped"
    assert run.result["steps"] == best + 3 < 40
    assert run.result["best_step"] == best
    assert run.result["eval_loss_after"] == losses[best]
    assert loss_by_transformers(run.directory, adapter=False) == pytest.approx(losses[best], rel=1e-4)
    assert "stopped early" in run.process.stdout
    assert list(run.directory.glob("best*")) == []


def interrupt_after_step_5(directory: Path, *arguments: str) -> Run:
    """Start 5,000 steps, press Ctrl-C once the fifth is recorded, and wait for the end."""
    process = subprocess.Popen(
        command(
            *TINY,
            NO_TRACKING,
            f"hydra.run.dir={directory}",
            "training.max_steps=5000",
            "training.epochs=5000",
            *arguments,
        ),
        cwd=directory.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = directory / "metrics.jsonl"
    until(lambda: process.poll() is not None or (metrics.exists() and '"step": 5,' in metrics.read_text()))
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    return Run(directory, subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr))


@pytest.mark.parametrize("parallelism", ["single", "ddp2"])
def test_ctrl_c_ends_after_the_step_with_what_was_reached(tmp_path, parallelism):
    run = interrupt_after_step_5(tmp_path / "run", f"parallelism={parallelism}")
    assert run.process.returncode == 130, run.process.stderr
    assert "Traceback" not in run.process.stderr
    assert run.result["status"] == "interrupted"
    assert 5 <= run.result["steps"] < 5000
    assert (run.directory / "adapter" / "adapter_model.safetensors").exists()
    assert "interrupted: what was reached is saved" in run.process.stdout


def test_an_interrupted_run_with_early_stopping_saves_its_best_weights(tmp_path):
    run = interrupt_after_step_5(
        tmp_path / "run",
        "training.eval_every=1",
        "training.early_stopping_patience=5000",
        "training.learning_rate=3",
        "training.scheduler=constant",
    )
    losses = {record["step"]: record["eval_loss"] for record in run.metrics("eval")[1:]}
    best = min(losses, key=lambda step: losses[step])
    assert run.result["best_step"] == best
    assert run.result["eval_loss_after"] == losses[best]
    assert loss_by_transformers(run.directory, adapter=True) == pytest.approx(losses[best], rel=1e-4)
    assert list(run.directory.glob("best*")) == []


def test_the_last_steps_are_recorded_when_log_every_does_not_divide_them(run_tiny):
    run = run_tiny("run", NO_TRACKING, "tracking.log_every=4")
    assert [record["step"] for record in run.metrics("train")] == [4, 6]


def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing(run_tiny):
    run = run_tiny("run", NO_TRACKING, "method=full", "training.learning_rate=1e30", "training.max_grad_norm=0")
    assert run.process.returncode == 1
    [line] = [line for line in run.process.stderr.splitlines() if line.startswith("error:")]
    assert "so the weights were not updated" in line
    assert "training.learning_rate" in line
    assert "Traceback" not in run.process.stderr
    assert not (run.directory / "model").exists()


def test_a_broken_row_is_named_with_its_line_and_nothing_is_trained(run_tiny, tmp_path):
    rows = tmp_path / "rows.jsonl"
    good = json.dumps({"instruction": "a", "response": "b"})
    rows.write_text(f'{good}\n{{"instruction": "c", "response": ""}}\n' + f"{good}\n" * 40)
    run = run_tiny("run", NO_TRACKING, "dataset=jsonl", f"dataset.path={rows}", "dataset.eval_samples=1")
    assert run.process.returncode == 1
    [line] = [line for line in run.process.stderr.splitlines() if line.startswith("error:")]
    assert f"{rows}:2: field 'response' is empty" in line
    assert not (run.directory / "metrics.jsonl").exists()


def copy_of_tiny_llama(directory: Path) -> Path:
    from launcher.config.schema import Config
    from tests.launcher.conftest import single
    from trainer.fetch.sources import fetch_model

    config = single("model=tiny_llama").config
    assert isinstance(config, Config)
    return Path(shutil.copytree(fetch_model(config.model), directory))


def test_a_sweep_goes_on_after_a_failed_run_and_its_exit_code_says_so(tmp_path):
    good, broken = copy_of_tiny_llama(tmp_path / "good"), copy_of_tiny_llama(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")  # which no header tells
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    sweep = tmp_path / "sweep"
    process = launch(
        tmp_path, "-m", *TINY, NO_TRACKING, f"hydra.sweep.dir={sweep}", "model=local", f"model.path={broken},{good}"
    )
    assert process.returncode == 1
    assert "model.norm.weight holds 1 numbers of 64 that are not finite" in process.stderr
    [finished] = sweep.glob("*/stages/train.json")
    assert json.loads(finished.read_text())["status"] == "finished"
    [line] = [line for line in process.stderr.splitlines() if line.startswith("error: 1 of 2")]
    assert "broken" in line, process.stderr


def test_a_sweep_over_both_methods_prints_the_table_with_ratios(tmp_path):
    sweep = tmp_path / "sweep"
    process = launch(tmp_path, "-m", *TINY, NO_TRACKING, f"hydra.sweep.dir={sweep}", "method=lora,full")
    assert process.returncode == 0, process.stderr
    assert "FPFT against PEFT" in process.stdout
    results = {path.parent.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/stages/train.json")}
    assert len(results) == 2
    lora, full = (next(r for r in results.values() if r["method"] == method) for method in ("lora", "full"))
    line = next(line for line in process.stdout.splitlines() if "trainable parameters" in line)
    assert f"{full['trainable_params']:,}" in line
    assert f"{lora['trainable_params'] / full['trainable_params']:.2f}x" in line
    assert lora["data"] == full["data"]
    assert lora["eval_loss_before"] == full["eval_loss_before"]


def test_merging_and_answering_follow_training_as_stages_and_alone(run_tiny):
    stages = ("stages=[fetch,train,merge,generate]", NO_TRACKING)
    few = ("generate.questions=3", "generate.max_new_tokens=4")
    run = run_tiny("run", *stages, *few)
    assert run.process.returncode == 0, run.process.stderr
    assert "loss of the right answers" in run.process.stdout
    assert "logits agree" in run.process.stdout
    assert json.loads((run.directory / "merged" / "config.json").read_text())["model_type"] == "llama"
    scores = json.loads((run.directory / "stages" / "generate.json").read_text())["scores"]
    assert scores["tuned"]["questions"] == 3
    again = run_tiny("run", *stages, *few)
    assert again.process.stderr.count("has finished already") == 4
    # Other questions are asked anew, of the model that is there.
    other = run_tiny("run", "stages=[generate]", NO_TRACKING, "generate.questions=5", "generate.max_new_tokens=4")
    assert other.process.returncode == 0, other.process.stderr
    assert len((run.directory / "generate" / "samples.jsonl").read_text().splitlines()) == 5
    assert run.result["status"] == "finished"
