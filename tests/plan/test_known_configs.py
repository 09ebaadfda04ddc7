"""Models of the Hub of families that conf/ has no facts of, by what is known of their config.json."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from transformers import CONFIG_MAPPING

from launcher.config.help import choices
from launcher.errors import TrntuneError
from launcher.model_dir.config_facts import check_agrees, described_by
from launcher.paths import CONF
from tests.launcher.conftest import single
from trainer.probes.model import describe

MODELS = [name for name, file in choices([CONF])["model"].items() if "\nconfig_json:" in file.read_text()]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_by_its_config_json_has_the_parameters_that_were_published(name):
    """The count is what others say of the model, not what was computed from these settings."""
    config = single(f"model={name}", "lora.target_modules=[all-linear]").config
    if config.model.config_json["model_type"] not in CONFIG_MAPPING:
        pytest.skip("a family that came with transformers 5")
    found = describe(str(described_by(config.model)), None)
    assert found["total"] == config.model.parameters
    assert 0 < describe(str(described_by(config.model)), asdict(config.lora))["trainable"] < found["total"] / 20


def test_it_is_planned_without_being_there(plan):
    found = plan("model=smollm3_3b", "lora=r16_qv")
    # Rank 16 on q_proj (2048 to 2048) and v_proj (2048 to 512) of 36 layers.
    assert found["parameters"]["trainable"] == 36 * 16 * (2048 + 2048 + 2048 + 512)


def test_what_it_cannot_do_is_refused_before_anything_is_there(launch, tmp_path):
    done = launch("model=smollm3_3b", "lora.target_modules=[c_attn]", "tracking=none", "hydra.run.dir=run")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "no linear layer c_attn" in line
    assert "/tmp" not in line
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("model=qwen3_8b", "model.config_json={model_type:qwen3}"), "without model.architecture alone"),
        (("model=tiny_llama", "model.config_json={model_type:qwen3}"), "leave it out"),
        (("model=smollm3_3b", "model.config_json={model_type:null}"), "names no model_type"),
    ],
)
def test_it_is_given_where_it_is_read(arguments, says, launch):
    done = launch(*arguments, "plan=true")
    assert done.returncode == 2
    assert says in done.stderr


def test_what_was_downloaded_is_held_against_it(tmp_path):
    model = single("model=qwen35_9b").config.model
    (tmp_path / "config.json").write_text(json.dumps({**model.config_json, "transformers_version": "5.0"}))
    check_agrees(model, tmp_path)
    changed = {**model.config_json, "text_config": {**model.config_json["text_config"], "num_hidden_layers": 24}}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(TrntuneError, match=r"has text_config\.num_hidden_layers=24, and model\.config_json.* 32"):
        check_agrees(model, tmp_path)
