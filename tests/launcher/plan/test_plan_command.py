"""`plan=true` and the check that every run gets: what a user sees before paying for anything."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from launcher.paths import ROOT
from launcher.plan.build import machine_bytes
from tests.conftest import TINY
from tests.launcher.conftest import single

ON_TRN1 = ("accelerator=trn1_32xlarge", "training.precision=bf16", "dataset=dolly15k", "training=epochs3")


def test_the_published_comparison_is_planned_as_it_was_measured(plan, cwd):
    full, lora = plan("experiment=blog_fpft_vs_peft")
    assert (full["method"], lora["method"]) == ("full", "lora")
    assert full["samples_per_second"] == pytest.approx(8.33, rel=0.01)
    assert lora["samples_per_second"] == pytest.approx(14.22, rel=0.01)
    assert 1 - lora["train_seconds"] / full["train_seconds"] == pytest.approx(0.41, abs=0.01)
    for found in (full, lora):
        assert found["world_size"] == 32
        assert found["accumulation_steps"] == 3
        assert found["steps_per_epoch"] == -(-(15_011 - 256) // 12)
        assert found["steps"] == 3 * found["steps_per_epoch"]
        assert found["epoch"]["padding_fraction"] == pytest.approx(0.81, abs=0.01)
        assert found["cost_usd"] is None
        assert found["fits"]
        assert "published" in found["duration"]["source"]
    assert (full["parameters"]["trainable"], lora["parameters"]["trainable"]) == (8_030_261_248, 6_815_744)
    assert not (cwd / "outputs").exists()


def test_a_price_becomes_a_cost(plan):
    price = (
        "accelerator.price_usd_per_hour=20",
        "accelerator.price_source=a bill",
        "accelerator.price_date=2026-11-01",
    )
    found = plan("model=llama3_8b", *ON_TRN1, "parallelism=trn1_tp8_dp4", *price)
    assert found["cost_usd"] == pytest.approx(20 * found["wall_seconds"] / 3600)
    assert found["instance_hours"] == pytest.approx(found["wall_seconds"] / 3600)


@pytest.mark.parametrize(
    ("arguments", "fits", "largest"),
    [
        (("model=llama3_8b", "method=full", "parallelism=trn1_tp8_dp4"), True, None),
        (("model=llama3_70b", "method=full", "parallelism=trn1_tp8_dp4"), False, "gradients"),
        (("model=llama3_70b", "lora=r16_qv", "parallelism=trn1_tp8_dp4"), False, "weights"),
        (("model=llama3_70b", "lora=r16_qv", "parallelism=trn1_tp8_pp4_dp4_4nodes"), True, None),
        (("model=qwen3_32b", "lora=r16_qv", "parallelism=trn1_tp8_dp4"), True, None),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_large_models_fit_or_not_and_by_what(answer, arguments, fits, largest):
    done = answer(
        *arguments, *ON_TRN1, "training.global_batch_size=48", "training.gradient_checkpointing=true", "plan=true"
    )
    assert done.returncode == (0 if fits else 1), done.stderr
    words = " ".join(done.stdout.replace("│", " ").split())
    assert (f"mostly {largest}" in words) if largest else ("fits: " in words and "DOES NOT FIT" not in words)


def test_zero_1_splits_the_optimizer_state_over_the_replicas(plan):
    arguments = ("model=llama3_8b", "method=full", *ON_TRN1, "parallelism=trn1_tp8_dp4")
    whole = plan(*arguments, "parallelism.data_parallel=1")["memory_bytes"]
    split = plan(*arguments)["memory_bytes"]
    assert whole["optimizer"] == 4 * split["optimizer"]
    assert whole["weights"] == split["weights"]


def test_a_plan_needs_no_heavy_package_and_no_network(tmp_path):
    code = (
        "import sys; from launcher.app import main; code = main(sys.argv[1:]);"
        "loaded = {'torch', 'transformers', 'mlflow', 'peft'} & set(sys.modules); assert not loaded, loaded;"
        "raise SystemExit(code)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HF_HUB_CACHE": str(tmp_path),
    }
    arguments = ("model=llama3_8b", *ON_TRN1, "parallelism=trn1_tp8_dp4", "plan=true")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "8,030,261,248" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_fit_is_refused_before_anything_is_made(launch, cwd):
    done = launch(*TINY, "accelerator.memory_gib=0.1")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "tiny_llama, lora: needs about 0." in line
    assert "of 0.11 GB" in line
    assert "plan.force=true" in line
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize(("text", "smaller"), [("1000000\n", True), ("max\n", False), (None, False)])
def test_a_containers_limit_is_the_machines_memory(tmp_path, text, smaller):
    limit = tmp_path / "memory.max"
    if text is not None:
        limit.write_text(text)
    assert (machine_bytes(limit) == 1_000_000) == smaller


def test_a_model_too_large_for_this_machine_is_refused(launch, cwd):
    done = launch("model=llama3_70b", "method=full")
    assert done.returncode == 2
    assert "llama3_70b, full: needs about" in done.stderr
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (("parallelism=trn1_tp8_pp4_dp4_4nodes", "cluster=slurm"), "cluster.cache_dir=null: compiled graphs"),
        (("parallelism=trn1_tp8_dp16_4nodes",), "128 processes are 4 instances of trn1_32xlarge"),
    ],
)
def test_what_can_only_be_planned_on_neuron_is_refused_before_anything_is_made(arguments, piece, answer, cwd):
    command = ("model=llama3_8b", *ON_TRN1, "training.global_batch_size=64", *arguments)
    done = answer(*command)
    assert done.returncode == 2
    assert piece in done.stderr
    assert list(cwd.iterdir()) == []
    assert answer(*command, "plan=true").returncode == 0


def test_the_published_comparison_is_two_chains_of_three_jobs(answer, cwd):
    cluster = ("cluster=slurm", "cluster.cache_dir=/fsx/trntune")
    done = answer("experiment=blog_fpft_vs_peft", *cluster, "dry_run=true", "tracking=none")
    assert done.returncode == 0, done.stderr
    chains = [line for line in done.stdout.splitlines() if line.startswith("# ") and " -> " in line]
    each = "fetch (1 node) -> compile (1 node x 32 processes) -> train (1 node x 32 processes)"
    assert [line.partition(": ")[2] for line in chains] == [each, each]
    assert done.stdout.count("export NEURON_CC_FLAGS=") == 4


def test_single_checks_of_the_parallelism(cwd):
    from launcher.checks.validate import problems

    for arguments, key, piece in [
        (
            ("parallelism=trn1_tp8_dp4", "training.global_batch_size=4"),
            "parallelism.zero_1",
            "its engine is torch",
        ),
        (
            ("model=smollm2_135m", *ON_TRN1, "parallelism=trn1_tp8_dp4"),
            "parallelism.tensor_parallel",
            "allowed are 1, 3, 9",
        ),
        (
            ("model=llama3_8b", *ON_TRN1, "parallelism=trn1_tp8_dp4", "parallelism.data_parallel=3"),
            "parallelism.data_parallel",
            "nearest is 4",
        ),
        (("model=llama3_8b", *ON_TRN1, "parallelism=trn1_tp32_dp1"), "lora.target_modules", "all three or none"),
        (
            ("model=llama3_8b", *ON_TRN1, "parallelism=trn1_tp8_dp4", "training.precision=fp32"),
            "parallelism.zero_1",
            "bf16",
        ),
        (("accelerator=cuda", "accelerator.engine=neuron"), "accelerator.engine", "needs torch"),
    ]:
        found = problems(single(*arguments).config)
        assert [key] == list(dict.fromkeys(problem.key for problem in found if problem.key == key)), (arguments, found)
        assert any(piece in str(problem) for problem in found), (arguments, list(map(str, found)))
