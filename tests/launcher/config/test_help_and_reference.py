"""--help and the reference are made from conf/ and the schema, and are complete."""

from __future__ import annotations

import pytest

from launcher.config.fields import keys
from launcher.config.help import COMMON_KEYS, choices, default_choices, description, help_text
from launcher.config.reference import reference
from launcher.paths import CONF, ROOT


def test_help_names_every_group_choice_and_common_key():
    text = help_text()
    for group, names in choices([CONF]).items():
        assert f"  {group}=" in text
        for name in names:
            mark = "*" if default_choices().get(group) == name else " "
            assert f"\n    {mark} {name} " in text
    for key in COMMON_KEYS:
        assert f"  {key}=" in text
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("python launch.py ") >= 6
    assert "Exit codes" in text


def test_the_shipped_defaults_are_those_of_the_default_choices():
    assert "training.max_steps=40 " in help_text()


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_choice_is_described(path):
    assert description(path).endswith(".")


def test_the_real_command_prints_the_help(launch, cwd):
    done = launch("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == help_text()
    assert list(cwd.iterdir()) == []


def test_the_committed_reference_is_up_to_date():
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference(), (
        "run: python -m launcher.config.reference > docs/configuration.md"
    )


def test_every_key_has_help_and_is_in_the_reference():
    text = reference()
    for path, key in keys().items():
        assert key.help, path
        assert f"| `{path}` |" in text
