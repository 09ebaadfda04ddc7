"""The shipped experiments: what they say they are, and the published one for real on a small model."""

from __future__ import annotations

import json

import pytest

from launcher.plan.steps import warmup_steps
from tests.conftest import launch
from tests.launcher.conftest import composition


def test_the_published_set_up_is_as_published():
    full, lora = (run.config for run in composition("experiment=blog_fpft_vs_peft").runs)
    assert (full.method.name, lora.method.name) == ("full", "lora")
    for config in (full, lora):
        training, parallel = config.training, config.parallelism
        assert config.model.hub_id == "meta-llama/Meta-Llama-3-8B"
        assert config.dataset.hub_id == "databricks/databricks-dolly-15k"
        assert (parallel.tensor_parallel, parallel.data_parallel) == (8, 4)
        assert (training.epochs, training.max_steps, training.max_length) == (3, None, 1024)
        assert (training.micro_batch_size, training.global_batch_size) == (1, 1 * 3 * 4)
        assert (training.learning_rate, training.weight_decay, training.warmup_steps) == (2e-5, 0.01, 100)
        assert training.warmup_from_zero  # transformers' schedule
        assert warmup_steps(config, 3690) == 100
        assert (config.dataset.loss_on, config.dataset.packing) == ("all", False)
    assert (lora.lora.r, lora.lora.alpha, lora.lora.dropout) == (16, 16, 0.05)
    assert lora.lora.target_modules == ["q_proj", "v_proj"]


def test_the_published_set_up_runs_as_a_sweep_on_a_small_model(tmp_path):
    small = ("model=tiny_llama", "dataset=python_docs", "dataset.max_samples=40", "dataset.eval_samples=4")
    here = ("accelerator=cpu", "parallelism=single", "training.precision=fp32", "tracking=none", "tracking.samples=0")
    short = ("training.warmup_steps=1", "training.max_steps=3")
    process = launch(
        tmp_path, "experiment=blog_fpft_vs_peft", *small, *here, *short, f"hydra.sweep.dir={tmp_path}/sweep"
    )
    assert process.returncode == 0, process.stderr
    results = {
        path.parent.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/stages/train.json")
    }
    assert sorted(results) == ["0_method=full", "1_method=lora"]
    for name, result in results.items():
        assert result["padding_fraction"] > 0.5  # a row of 1,024 for each sample
        last = json.loads((tmp_path / "sweep" / name / "metrics.jsonl").read_text().splitlines()[-2])
        assert last["examples"] == 3 * 12
        assert last["trained_tokens"] == last["tokens"] - last["examples"]  # all but the first of each
    assert (tmp_path / "sweep" / "report" / "report.html").exists()


def test_peft_methods_are_all_methods_at_all_ranks():
    runs = composition("experiment=peft_methods").runs
    found = {
        (run.config.lora.name, run.config.lora.use_dora, run.config.lora.use_rslora, run.config.lora.r) for run in runs
    }
    kinds = {("r16_qv", False, False), ("dora", True, False), ("rslora", False, True)}
    assert found == {(*kind, rank) for kind in kinds for rank in (4, 16, 64)}
    assert {run.config.method.name for run in runs} == {"lora"}


@pytest.mark.parametrize("experiment", ["fpft_vs_peft_small", "peft_methods"])
def test_the_others_run_on_the_default_model_with_losses_to_compare(experiment):
    for run in composition(f"experiment={experiment}").runs:
        assert run.config.model.name == "smollm2_135m"
        assert run.config.training.eval_every == 4
