"""Models that bring code of their own, or an attention that does not keep packed samples apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.config.schema import Config
from launcher.errors import TrntuneError, UsageError
from tests.launcher.conftest import single
from trainer.families.choose import way_of_training
from trainer.models.attention import DOCUMENT_ATTENTION
from trainer.models.load import load_model, load_tokenizer

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig): model_type = "own"
class OwnModel(LlamaForCausalLM): config_class = OwnConfig
"""


@pytest.fixture
def directory(tmp_path, monkeypatch) -> Path:
    """A tiny Llama under a name that only its own code knows; the code leaves a mark when it runs."""
    from trainer.fetch.sources import fetch_model

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    source, target = fetch_model(single("model=tiny_llama").config.model), tmp_path / "model"
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / "code.py").write_text(CODE.format(marker=str(tmp_path / "marker")))
    edit(target, model_type="own", auto_map={"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"})
    return target


def edit(directory: Path, **changes) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def config_with(trust: bool) -> Config:
    config = single("model=tiny_llama").config
    config.model.trust_remote_code = trust
    return config


def test_code_of_a_model_does_not_run_by_itself(directory, tmp_path):
    with pytest.raises(TrntuneError, match="can't be loaded"):
        load_model(directory, config_with(False), DOCUMENT_ATTENTION)
    assert not (tmp_path / "marker").exists()


def test_code_of_a_model_runs_when_it_is_trusted(directory, tmp_path):
    model = load_model(directory, config_with(True), DOCUMENT_ATTENTION)
    assert type(model).__name__ == "OwnModel"
    assert (tmp_path / "marker").read_text() == "ran"


def test_code_of_another_repository_never_runs(directory, tmp_path):
    edit(directory, auto_map={"AutoConfig": "someone/else--code.OwnConfig"})
    for trust in (False, True):
        with pytest.raises(TrntuneError, match="it names code of another repository"):
            load_tokenizer(directory, trust)
        with pytest.raises(TrntuneError, match="it names code of another repository"):
            load_model(directory, config_with(trust), DOCUMENT_ATTENTION)


def test_a_model_whose_attention_cannot_keep_samples_apart_is_refused(directory):
    code = (directory / "code.py").read_text()
    (directory / "code.py").write_text(
        code.replace("config_class =", "_supports_attention_backend = False; config_class =")
    )
    config = config_with(True)
    with pytest.raises(UsageError, match=r"OwnModel has layers of its own .*; dataset.packing=false works"):
        way_of_training(directory, config)
    config.dataset.packing = False
    assert way_of_training(directory, config).alone is None
