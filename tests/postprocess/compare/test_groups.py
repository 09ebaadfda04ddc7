"""Which runs are put into one ratio, what a variant is called, and what its base is."""

from __future__ import annotations

import pytest

from tests.postprocess.conftest import report, variants
from trainer.metrics.throughput import DEFINITIONS_VERSION


@pytest.mark.parametrize(
    ("where", "key", "value", "told"),
    [
        ("train", "data.sha256", "f" * 64, "data.sha256: ffffffffffff here, "),
        ("train", "definitions", 1, f"definitions: 1 here, {DEFINITIONS_VERSION} there"),
        ("train", "hardware.logical_cpus", 96, "hardware.logical_cpus: 96 here, "),
        ("train", "hardware.accelerator", "trn1", "hardware.accelerator: trn1 here, cpu there"),
        ("train", "libraries.transformers", "4.57.6", "libraries.transformers: 4.57.6 here, "),
        ("config", "model.name", "other", "model.name: other here, tiny_llama there"),
        ("config", "model.path", "elsewhere", "model.path: elsewhere here, null there"),
        ("config", "training.global_batch_size", 8, "training.global_batch_size: 8 here, 2 there"),
        ("config", "training.max_length", 1024, "training.max_length: 1024 here, 512 there"),
        ("config", "training.precision", "bf16", "training.precision: bf16 here, fp32 there"),
        ("config", "tracking.skip_steps", 1, "tracking.skip_steps: 1 here, 2 there"),
        ("config", "dataset.name", "mine", "dataset.name: mine here, python_docs there"),
        ("config", "dataset.eval_samples", 9, "dataset.eval_samples: 9 here, 8 there"),
        ("config", "dataset.split_seed", 3, "dataset.split_seed: 3 here, 0 there"),
        ("config", "dataset.max_samples", None, "dataset.max_samples: null here, 40 there"),
        ("config", "dataset.prompt", "chat", "dataset.prompt: chat here, plain there"),
        ("config", "dataset.loss_on", "all", "dataset.loss_on: all here, response there"),
        ("config", "dataset.packing", False, "dataset.packing: false here, true there"),
        ("config", "dataset.on_bad_row", "skip", "dataset.on_bad_row: skip here, stop there"),
        ("config", "dataset.columns.response", "text", "dataset.columns.response: text here, response there"),
        ("config", "dataset.too_long", "drop", "dataset.too_long: drop here, cut there"),
        ("config", "dataset.weights", [1.0, 2.0], "dataset.weights: 1.0+2.0 here,  there"),
        ("config", "dataset.prompt_template", "Q: {a}", "dataset.prompt_template: Q: {a} here, null there"),
        ("train", "data.format", "messages", "data.format: messages here, instruction there"),
        ("train", "data.template_sha256", "a" * 64, "data.template_sha256: aaaaaaaaaaaa here, null there"),
    ],
)
def test_runs_that_differ_in_what_must_agree_have_a_table_each_and_no_ratio(make, capsys, where, key, value, told):
    full = make("full", "full")
    lora = make("lora", **{where: {key: value}})
    first, second = report(full, lora)["groups"]
    assert [len(group["variants"]) for group in (first, second)] == [1, 1]
    assert all(variant["metrics"]["samples_per_second"]["ratio"] is None for variant in second["variants"])
    assert first["separation"] == []
    [line] = second["separation"]
    assert line.startswith("no ratio to group 1: ")
    assert told in line
    assert line.count(" there") == 1, line
    printed = capsys.readouterr().out
    assert line in printed
    assert "Group 2 of 2" in printed


def test_names_places_and_where_the_same_data_came_from_make_no_difference(make):
    config = {
        "output_dir": "x",
        "stages": ["train"],
        "dataset.path": "/copy.jsonl",
        "dataset.source": "jsonl",
        "tracking.uri": "http://server",
        "tracking.experiment": "e",
        "tracking.run_name": "n",
    }
    [group] = report(make("one"), make("two", seed=1, config=config))["groups"]
    [variant] = group["variants"]
    assert [run["seed"] for run in variant["runs"]] == [0, 1]


def test_only_what_differs_is_in_the_label(make):
    runs = [make("full", "full"), make("lora")]
    runs += [make("lora_r8", config={"lora.r": 8}), make("long", config={"lora.r": 8, "training.max_steps": 9})]
    [group] = report(*runs)["groups"]
    assert [variant["label"] for variant in group["variants"]] == [
        "method=full, training.max_steps=6",
        "method=lora, lora.r=16, training.max_steps=6",
        "method=lora, lora.r=8, training.max_steps=6",
        "method=lora, lora.r=8, training.max_steps=9",
    ]


def test_a_group_choice_is_called_by_its_name_without_what_follows_from_it(make):
    dora = make("dora", config={"lora.name": "dora", "lora.use_dora": True})
    two = make("two", config={"parallelism.name": "ddp2", "parallelism.data_parallel": 2})
    [group] = report(make("lora"), dora, two)["groups"]
    assert [variant["label"] for variant in group["variants"]] == [
        "lora=r16_qv, parallelism=single",
        "lora=dora, parallelism=single",
        "lora=r16_qv, parallelism=ddp2",
    ]


def test_each_methods_own_learning_rate_is_no_difference_but_a_given_one_is(make):
    full, lora = make("full", "full"), make("lora")
    assert list(variants(report(full, lora)["groups"][0])) == ["method=full", "method=lora"]
    given = make("given", config={"training.learning_rate": 0.002})
    assert list(variants(report(full, given)["groups"][0])) == [
        "method=full, training.learning_rate=5e-05",
        "method=lora, training.learning_rate=0.002",
    ]


def test_an_adapters_settings_make_no_variants_of_full_fine_tuning(make):
    runs = [make("full8", "full", config={"lora.r": 8}), make("full16", "full", seed=1), make("lora")]
    [group] = report(*runs)["groups"]
    assert [len(variant["runs"]) for variant in group["variants"]] == [2, 1]


def test_the_base_is_the_full_fine_tuning_that_shares_most_of_what_is_swept(make, capsys):
    runs = []
    for method in ("lora", "full"):
        for steps in (6, 9):
            for decay in (0.0, 0.1):
                config = {"training.max_steps": steps, "training.weight_decay": decay}
                if (method, steps, decay) != ("full", 9, 0.1):
                    runs.append(make(f"{method}{steps}{decay}", method, config=config))
    [group] = report(*runs)["groups"]
    label = "method={}, training.max_steps={}, training.weight_decay={}"
    bases = {variant["label"]: variant["base"] for variant in group["variants"]}
    for steps, decay in ((6, 0.0), (6, 0.1), (9, 0.0)):
        assert bases[label.format("lora", steps, decay)] == label.format("full", steps, decay)
        assert bases[label.format("full", steps, decay)] == label.format("full", steps, decay)
    # Its own counterpart is missing: two share one value with it, and the first of them is taken.
    assert bases[label.format("lora", 9, 0.1)] == label.format("full", 6, 0.1)


def test_full_fine_tunings_alone_are_compared_with_the_first(make):
    runs = [make(f"full{decay}", "full", config={"training.weight_decay": decay}) for decay in (0.1, 0.0)]
    [group] = report(*runs)["groups"]
    assert {variant["base"] for variant in group["variants"]} == {"training.weight_decay=0.1"}


def test_without_full_fine_tuning_the_first_variant_is_the_base_and_the_report_says_so(make):
    [group] = report(make("a", config={"lora.r": 8}), make("b", config={"lora.r": 4}))["groups"]
    assert variants(group)["lora.r=4"]["base"] == "lora.r=8"
    assert any(
        "no full fine-tuning in this group: the base is its first variant, lora.r=8" in n for n in group["notes"]
    )


def test_different_numbers_of_steps_are_told(make):
    [same] = report(make("full", "full"), make("lora", train={"steps": 6}))["groups"]
    assert not any("different numbers of steps" in note for note in same["notes"])
    [other] = report(make("full2", "full"), make("lora2", train={"steps": 5, "status": "early_stopped"}))["groups"]
    assert any("different numbers of steps (method=full: 6; method=lora: 5)" in note for note in other["notes"])


def test_a_disturbed_run_is_named(make):
    disturbed = make("lora", train={"step_seconds_p50": 2.0, "step_seconds_p95": 13.0})
    [group] = report(make("full", "full"), disturbed)["groups"]
    [note] = [note for note in group["notes"] if "something else used the machine" in note]
    assert "lora: its p95 step took 6.5 times its median" in note


def test_few_measured_steps_and_missing_repeats_warn_against_quoting(make):
    [group] = report(make("full", "full"), make("lora", train={"measured_steps": 9}))["groups"]
    assert any("only 9 measured steps" in note for note in group["notes"])
    assert any("no repeats of any variant" in note for note in group["notes"])
    runs = [make(f"{method}{seed}", method, seed) for method in ("full", "lora") for seed in (0, 1)]
    assert report(*runs)["groups"][0]["notes"] == []
