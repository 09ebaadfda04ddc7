"""`plan=true` where it measures, and the plan of a run against the run: processes that import torch."""

from __future__ import annotations

import json

import pytest

from tests.conftest import TINY


def test_the_plan_of_a_run_agrees_with_the_run(run_tiny, plan):
    arguments = (*TINY, "tracking=none", "training.max_steps=null", "training.epochs=1", "training.warmup_steps=0")
    run = run_tiny("run", *arguments[1:])
    assert run.process.returncode == 0, run.process.stderr
    found = plan(*arguments)
    result, data = run.result, run.result["data"]
    assert found["epoch"]["source"] == "measured on the data, format instruction"
    assert found["parameters"]["total"] == result["total_params"]
    assert found["parameters"]["trainable"] == result["trainable_params"]
    assert found["steps"] == result["steps"]
    assert found["epoch"]["rows"] == data["train_rows"]
    assert found["epoch"]["examples"] == data["train_examples"]
    assert found["epoch"]["tokens"] == data["train_tokens"]
    assert found["epoch"]["padding_fraction"] == pytest.approx(data["padding_fraction"])
    assert found["epoch"]["trained"] == run.metrics("train")[-1]["trained_tokens"]
    kept = json.loads((run.directory / "plan.json").read_text())
    assert kept["parameters"] == found["parameters"]
    assert kept["memory_bytes"] == found["memory_bytes"]


def test_a_chat_prompt_is_measured_too(plan, run_tiny):
    arguments = (*TINY, "tracking=none", "dataset.prompt=chat", "training.max_steps=3", "training.eval_every=null")
    run = run_tiny("run", *arguments[1:])
    assert plan(*arguments)["epoch"]["tokens"] == run.result["data"]["train_tokens"]


def test_a_local_model_of_another_family_is_counted_by_its_own_modules(plan, launch, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    real = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300, n_positions=512))
    real.config.save_pretrained(tmp_path / "gpt2")
    arguments = ("model=local", f"model.path={tmp_path}/gpt2", "training.max_length=256")
    counts = plan(*arguments, "method=full")["parameters"]
    assert counts["total"] == counts["trainable"] == sum(p.numel() for p in real.parameters())
    refused = launch(*arguments, "method=lora", "plan=true")
    assert refused.returncode == 2
    assert "no linear layer q_proj" in refused.stderr


def test_plan_force_starts_it_all_the_same(run_tiny):
    run = run_tiny("run", "tracking=none", "accelerator.memory_gib=0.1", "plan.force=true", "training.max_steps=3")
    assert run.process.returncode == 0, run.process.stderr
    assert json.loads((run.directory / "plan.json").read_text())["fits"] is False


def test_data_that_was_not_fetched_is_estimated_or_named(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("TRNTUNE_CACHE", str(tmp_path / "empty"))
    known = plan("experiment=tiny", "dataset=dolly15k")
    assert known["epoch"]["source"] == "estimated from dataset.rows and dataset.tokens_per_row"
    unknown = plan("experiment=tiny")
    assert unknown["epoch"] is None
    assert unknown["steps"] == 6
    assert not (tmp_path / "empty").exists()


def test_a_large_data_set_is_measured_on_a_sample_of_it(plan, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"instruction": f"number {i}", "response": "x" * (i % 50 + 1)}) + "\n" for i in range(12000))
    )
    arguments = (
        "experiment=tiny",
        "dataset=jsonl",
        f"dataset.path={rows}",
        "dataset.max_samples=null",
        "dataset.eval_samples=8",
    )
    found = plan(*arguments)["epoch"]
    assert "5,008 of 12,000 rows" in found["source"]
    letters = sum(len(f"### Instruction\nnumber {i}\n\n### Answer\n") + i % 50 + 1 + 1 for i in range(12000))
    assert found["tokens"] == pytest.approx(letters * (12000 - 8) / 12000, rel=0.01)  # a byte is a token
