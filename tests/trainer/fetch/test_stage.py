"""Stage fetch finds what training would fail of, where no accelerator waits."""

from __future__ import annotations

import json

import pytest

from launcher.errors import TrntuneError, UsageError
from launcher.plan import build, schedule, show
from tests.conftest import TINY
from tests.launcher.conftest import single
from trainer.fetch import stage as fetch
from trainer.probes import dataset

LONG = {"instruction": "Say it. " * 40, "response": "It is. " * 20}  # bytes are tokens: each fills a row of 512


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The configuration of a run on 40 rows of a file."""
    monkeypatch.setattr(schedule, "_measured", {})
    path = tmp_path / "rows.jsonl"

    def made(*arguments: str, rows=40, **more):
        path.write_text(
            "".join(
                json.dumps({**LONG, "instruction": f"{i} {LONG['instruction']}", **more}) + "\n" for i in range(rows)
            )
        )
        data = ("dataset=jsonl", f"dataset.path={path}", "dataset.max_samples=null", "dataset.eval_samples=8")
        run = ("training.max_steps=null", "training.warmup_steps=0", "tracking=none", "training.eval_every=null")
        return single(*TINY, *data, *run, *arguments).config

    return made


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["training.global_batch_size=33"], "the data give only 32 rows of training.max_length=512"),
        (
            ["training.warmup_steps=17"],
            "at the peak learning rate of the 16 steps that 32 rows of data give; at most 16",
        ),
        (
            ["training.warmup_steps=2", "training.epochs=0.1"],
            "tracking.skip_steps=2: leaves no step to measure of the 2",
        ),
    ],
)
def test_too_few_rows_are_refused_by_fetch_and_by_the_plan(arguments, says, settings, tmp_path):
    config = settings(*arguments)
    with pytest.raises(UsageError) as fetched:
        fetch.look_at_rows(config, tmp_path / "rows.jsonl")
    with pytest.raises(UsageError) as planned:
        build.make(config)
    assert says in str(fetched.value)
    assert str(planned.value) == str(fetched.value)


def test_what_just_fits_is_not_refused_and_measured_only_where_the_number_of_rows_leaves_a_doubt(
    settings, tmp_path, monkeypatch
):
    looked = []
    measured = dataset.measure
    monkeypatch.setattr(dataset, "measure", lambda config: looked.append(config) or measured(config))
    path = tmp_path / "rows.jsonl"
    fetch.look_at_rows(settings("training.warmup_steps=16"), path)
    fetch.look_at_rows(settings("training.global_batch_size=32", "tracking.skip_steps=0"), path)
    assert len(looked) == 2
    fetch.look_at_rows(settings("training.warmup_steps=16", "dataset.packing=false"), path)
    fetch.look_at_rows(settings(rows=3000), path)
    assert len(looked) == 2


def test_rows_of_a_held_out_set_of_ones_own_are_none_to_train_on(settings, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({**LONG, "instruction": f"own {i}"}) + "\n" for i in range(9)))
    fits = settings("training.global_batch_size=40", "tracking.skip_steps=0", f"dataset.eval_path={own}")
    fetch.look_at_rows(fits, fetch.fetch_dataset(fits.dataset))
    one = settings(f"dataset.path=[{tmp_path / 'rows.jsonl'}]").dataset
    assert fetch.fetch_dataset(one) == tmp_path / "rows.jsonl"
    config = settings("training.global_batch_size=41", f"dataset.eval_path={own}")
    with pytest.raises(UsageError, match="the data give only 40 rows"):
        fetch.look_at_rows(config, fetch.fetch_dataset(config.dataset))


def test_rows_that_are_left_out_since_they_are_too_long_do_not_count(settings, tmp_path):
    config = settings("training.global_batch_size=64", "dataset.too_long=drop")
    path = tmp_path / "rows.jsonl"
    with path.open("a") as stream:
        stream.writelines(json.dumps({**LONG, "instruction": f"{i} " * 400}) + "\n" for i in range(200))
    with pytest.raises(UsageError, match=r"training\.global_batch_size=64: the data give only \d\d rows"):
        fetch.look_at_rows(config, path)


def test_broken_rows_and_a_lost_context_are_found_by_fetch(settings, tmp_path):
    config = settings(input="what it is about")
    with pytest.raises(TrntuneError, match="field 'input' looks like a context"):
        fetch.look_at_rows(config, tmp_path / "rows.jsonl")
    config = settings(response="")
    with pytest.raises(TrntuneError, match=r"rows\.jsonl:1: field 'response' is empty"):
        fetch.look_at_rows(config, tmp_path / "rows.jsonl")


def test_the_plan_tells_of_fields_that_are_not_used(settings):
    plan = build.make(settings(category="books"))
    assert plan.epoch is not None
    assert plan.epoch.unused == {"category": pytest.approx(1 / 93, rel=0.05)}
    assert any("fields that are not used: 'category' 1." in note for note in show.footnotes([plan]))


def test_a_plan_by_an_estimate_says_what_will_be_refused(settings, monkeypatch):
    monkeypatch.setattr(schedule, "measured", lambda config, extents: None)
    facts = ("dataset.rows=40", "dataset.tokens_per_row=500", "training.warmup_ratio=0.5")
    plan = build.make(settings(*facts, "training.global_batch_size=64"))
    [note] = [note for note in show.footnotes([plan]) if "by that estimate it will be refused" in note]
    assert "training.global_batch_size=64: the data give only 33 rows" in note
    plan = build.make(settings(*facts))
    assert plan.schedule.steps == 17
    assert show.learning_rate(plan).endswith("linear; 9 steps of warm-up, the first with 0.000111111")
