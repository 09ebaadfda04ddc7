"""What may differ when a run is started again."""

from __future__ import annotations

import pytest

from launcher.changes import changes, config_sha256, fixed_part, refuse_changes
from launcher.checks import problems
from launcher.errors import UsageError
from tests.launcher.conftest import single


def config(*overrides: str):
    return single("experiment=tiny", "tracking=none", *overrides).config


def refusal(*overrides: str, allowed: tuple[str, ...] = ()) -> str:
    with pytest.raises(UsageError) as error:
        refuse_changes(changes(config(), config(*overrides)), list(allowed), "outputs/x")
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
    refuse_changes(found, [allowed], "outputs/x")
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
