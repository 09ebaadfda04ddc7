"""Room on disk: what a run has there at its fullest, and what is said before anything is created."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.plan.disk import merged_bytes
from launcher.plan.room import SLACK, Sizes, little_room, room_of
from tests.launcher.conftest import single

SIZES = Sizes(weights=10, checkpoint=30, merged=100)
# A checkpoint of tiny_llama's adapter has 86 kB; a hundred million of them is more than any disk here.
MANY = ("training.max_steps=100000000", "training.epochs=100000000", "training.save_every=1")


@pytest.mark.parametrize(
    ("overrides", "steps", "checkpoints", "one_more"),
    [
        (["training.save_every=null"], 100, 0, 0),
        (["training.save_every=10"], 5, 1, 0),
        (["training.save_every=10"], 20, 2, 0),
        (["training.save_every=10"], 21, 2, 1),
        (["training.save_every=10", "training.keep_checkpoints=9"], None, 9, 1),
    ],
)
def test_the_newest_checkpoints_are_kept_and_one_more_is_written(
    overrides: list[str], steps: int | None, checkpoints: int, one_more: int
) -> None:
    found = room_of(single(*overrides).config, SIZES, steps)
    assert (found.checkpoints, found.one_more) == (30 * checkpoints, 30 * one_more)
    assert found.final == 110
    assert found.most == found.kept == 30 * checkpoints + 110 + SLACK  # the last checkpoint comes before the weights


def test_a_model_in_parts_is_there_twice() -> None:
    stages = "stages=[fetch,compile,train,consolidate]"
    found = room_of(single("accelerator=trn1_32xlarge", stages, "training.save_every=null").config, Sizes(10, 30), 5)
    assert found.final == 20


def test_a_merged_model_has_a_head_of_its_own_where_training_unties_it() -> None:
    merges, total = "stages=[fetch,train,merge]", 134_515_008
    plain = merged_bytes(single(merges).config, None, total)
    for options in ("lora.modules_to_save=[lm_head]", "lora.modules_to_save=[embed_tokens,model.norm]"):
        assert merged_bytes(single(merges, options).config, None, total) - plain == 4 * 49152 * 576
    assert merged_bytes(single(merges, "lora.modules_to_save=[model.norm]").config, None, total) == plain == 4 * total


def test_the_runs_of_a_sweep_stay_beside_each_other(tmp_path: Path) -> None:
    room = room_of(single("training.save_every=null").config, Sizes(10**15, 0), 5)
    assert little_room(tmp_path / "not" / "there", [room] * 3, there=4 * 10**15) is None
    fault = little_room(tmp_path / "not" / "there", [room] * 3, there=2 * 10**15)
    assert fault is not None
    assert "needs about 3000000.00 GB there (3 runs, the first: adapter 1000000.00 GB)" in fault


def test_a_base_that_cannot_be_saved_as_it_is_is_told_by_the_plan(answer, tmp_path: Path) -> None:
    facts = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes = {**facts, "num_attention_heads": 4, "vocab_size": 264, "max_position_embeddings": 1024}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    (tmp_path / "tokenizer.json").write_text("{}")
    settings = tmp_path / "generation_config.json"
    settings.write_text(json.dumps({"temperature": 0.6}))
    rows = ("dataset=dolly15k", "dataset.max_samples=50", "dataset.eval_samples=5")
    given = ("model=local", f"model.path={tmp_path}", *rows, "accelerator=cuda", "plan=true")
    note = f"note: {settings} gives temperature=0.6 without do_sample"
    full, lora = answer(*given, "method=full"), answer(*given, "method=lora")
    assert (full.returncode, lora.returncode) == (0, 0), full.stderr + lora.stderr
    assert note in full.stdout
    assert note not in lora.stdout
    assert note in answer(*given, "method=lora", "stages=[fetch,train,merge]").stdout
    settings.write_text("[1]")
    refused = answer(*given)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: model.path={tmp_path}: {settings} is not a JSON object: correct it, or remove it\n"
    )


def test_too_little_room_is_planned_and_refused_before_anything_is_created(answer, cwd: Path) -> None:
    given = ("experiment=tiny", *MANY, "training.keep_checkpoints=1000000000", "tracking=none")
    refused = answer(*given)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {cwd / 'outputs'}: needs about ")
    assert "100000000 checkpoints of 0.00 GB" in refused.stderr
    assert "lower training.keep_checkpoints" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert list(cwd.iterdir()) == []
    planned = answer(*given, "plan=true")
    assert planned.returncode == 1
    assert "DOES NOT FIT" in planned.stdout
