"""What may differ when a run is started again."""

from __future__ import annotations

import pytest

from launcher.checks.validate import problems
from launcher.errors import UsageError
from launcher.run_dir.config_diff import changes, check_changes, config_sha256, fixed_part, since
from tests.launcher.conftest import single


def config(*overrides: str):
    return single("experiment=tiny", "tracking=none", *overrides).config


def refusal(*overrides: str, allowed: tuple[str, ...] = ()) -> str:
    with pytest.raises(UsageError) as error:
        check_changes(changes(config(), config(*overrides)), list(allowed), "outputs/x")
    return str(error.value)


def test_the_same_configuration_goes_on():
    assert changes(config(), config()) == []


@pytest.mark.parametrize("override", ["plan.force=true", "stages=[train]", "training.allow_config_change=[tracking]"])
def test_what_says_nothing_about_the_training_may_differ(override):
    assert changes(config(), config(override)) == []
    assert config_sha256(config()) == config_sha256(config(override))


def test_a_change_is_refused_with_both_values_and_the_way_to_allow_it():
    message = refusal("training.learning_rate=0.5", "training.eval_every=null")
    assert "training.learning_rate: 0.001 there, 0.5 here" in message
    assert "training.eval_every: 3 there, null here" in message
    assert "training.allow_config_change=[training.learning_rate,training.eval_every]" in message


@pytest.mark.parametrize("allowed", ["training.learning_rate", "training"])
def test_a_change_that_is_named_is_allowed(allowed):
    found = changes(config(), config("training.learning_rate=0.5"))
    check_changes(found, [allowed], "outputs/x")
    assert [change.key for change in found] == ["training.learning_rate"]


@pytest.mark.parametrize(
    "override",
    ["seed=1", "training.max_length=256", "lora.r=4", "dataset.eval_samples=9", "model.name=x", "method=full"],
)
def test_what_gives_weights_and_position_their_meaning_never_changes(override):
    assert "can't change within a run" in refusal(override, allowed=("training", "lora", "seed"))


def test_a_place_may_change_since_contents_are_compared():
    a, b = config(), config()
    b.model.path = "/elsewhere"
    assert fixed_part(a) == fixed_part(b)


# What checkpoints have recorded of the data set since there are any.
RECORDED = frozenset(
    f"dataset.{name}"
    for name in (
        *("name", "source", "hub_id", "hub_file", "revision", "rows", "tokens_per_row", "max_samples", "eval_samples"),
        *("split_seed", "prompt", "loss_on", "packing", "streaming", "on_bad_row"),
        *("columns.instruction", "columns.context", "columns.response"),
    )
)


@pytest.mark.parametrize("dataset", ["python_docs", "dolly15k", "hub dataset.hub_id=a/b"])
def test_settings_that_were_added_since_mean_the_same_as_none(dataset):
    """Else a newer version could not go on with the runs of an older one."""
    fixed = fixed_part(single("experiment=tiny", *f"dataset={dataset}".split()).config)
    data = {key: value for key, value in fixed.items() if key.startswith("dataset.")}
    assert data.keys() >= RECORDED
    assert {key: value for key, value in data.items() if key not in RECORDED and value is not None} == {}
    assert since({**fixed, "dataset.too_long": "cut", "dataset.columns.text": "text"}) == fixed
    assert fixed_part(config("dataset.too_long=drop"))["dataset.too_long"] == "drop"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("training.learning_rat", "did you mean training.learning_rate?"),
        ("seed", "can't change within a run"),
        ("lora.r", "can't change within a run"),
    ],
)
def test_names_that_make_no_sense_are_refused(name, message):
    [problem] = problems(config(f"training.allow_config_change=[{name}]"))
    assert message in str(problem)
