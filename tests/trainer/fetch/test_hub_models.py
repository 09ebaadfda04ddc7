"""Models of the Hub, from a Hub on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.paths import ROOT
from tests.limits import PATIENCE
from tests.trainer.fetch.hub_server import serving
from tests.trainer.models.conftest import composed
from trainer.fetch.sources import fetch_model

FETCH = """
from launcher.errors import TrntuneError
from trainer.fetch.hub import fetch_model
try:
    print(sorted(file.name for file in fetch_model("owner/name", None).iterdir()))
except TrntuneError as error:
    print(error)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(fetch_model(composed("model=tiny_llama").model), tmp_path / "repository"))


def fetch(repository: Path, home: Path) -> tuple[str, list[str]]:
    """What is said in one line, and the files that were asked for."""
    [line], asked = run(FETCH, repository, home)
    return line, asked


def run(script: str, repository: Path, home: Path) -> tuple[list[str], list[str]]:
    """The lines that a process of its own prints, and the files that were asked for."""
    with serving(repository) as (handler, endpoint):
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), [path.rpartition("/")[2] for path in handler.asked if "/resolve/" in path]


def test_the_second_copy_in_mistrals_own_format_is_not_downloaded(repository, tmp_path):
    shutil.copy(repository / "model.safetensors", repository / "consolidated.safetensors")
    line, asked = fetch(repository, tmp_path)
    assert "model.safetensors" in asked
    assert "'model.safetensors'" in line
    assert "consolidated.safetensors" not in asked


def test_a_quantized_model_is_refused_before_its_weights_are_downloaded(repository, tmp_path):
    content = json.loads((repository / "config.json").read_text())
    quantized = {**content, "quantization_config": {"quant_method": "mxfp4"}}
    (repository / "config.json").write_text(json.dumps(quantized))
    line, asked = fetch(repository, tmp_path)
    assert line == (
        "model owner/name: its weights are quantized (MXFP4), which nothing here trains, merges or answers with: take "
        "a copy of it in bf16"
    )
    assert set(asked) == {"config.json"}


KNOWN = """
from launcher.errors import TrntuneError
from tests.launcher.conftest import single
from trainer.fetch.sources import fetch_model
for size in (65, 64):
    model = single("model=smollm3_3b", "model.hub_id=owner/name").config.model
    model.config_json = {"model_type": "llama", "hidden_size": size}
    try:
        print((fetch_model(model) / "model.safetensors").is_file())
    except TrntuneError as error:
        print(error)
"""


def test_a_model_that_is_another_one_than_was_planned_is_refused_before_its_weights_are_downloaded(
    repository, tmp_path
):
    (refused, found), asked = run(KNOWN, repository, tmp_path)
    assert refused == (
        "model owner/name: its config.json has hidden_size=64, and model.config_json, by which it was planned, 65: "
        "give model.revision=COMMIT of the model that was meant, or correct hidden_size in model.config_json"
    )
    assert found == "True"
    assert asked.index("config.json") < asked.index("model.safetensors")
    assert asked.count("model.safetensors") >= 1


def test_a_model_that_has_pickles_alone_is_refused_with_the_commands_that_convert_it(repository, tmp_path):
    (repository / "model.safetensors").rename(repository / "pytorch_model.bin")
    line, asked = fetch(repository, tmp_path)
    assert line == (
        "model owner/name: it has no safetensors weights; pytorch_model.bin can be converted once: hf download "
        "owner/name --local-dir DIR, then python -m postprocess.convert DIR OUT and model=local model.path=OUT"
    )
    assert "pytorch_model.bin" not in asked
