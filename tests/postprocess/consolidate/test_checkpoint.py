"""The torch engine's checkpoints become directories that anyone can load."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from launcher.errors import TrntuneError
from launcher.paths import ROOT
from postprocess.merge import MergeOptions, merge
from tests.conftest import TINY, environment, launch
from tests.limits import PATIENCE


@pytest.fixture(scope="module", params=["lora", "full"])
def run(request, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    process = launch(directory, *TINY, f"method={request.param}", "tracking=none", f"hydra.run.dir={directory}/run")
    assert process.returncode == 0, process.stderr
    return directory / "run"


def consolidate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "postprocess.consolidate", *map(str, arguments)]
    env = {**environment(), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    [file] = directory.glob("*.safetensors")
    return load_file(file)


def test_the_last_checkpoint_is_what_training_saved(run, tmp_path):
    done = consolidate(run, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "from step 6" in done.stdout
    saved = run / "adapter" if (run / "adapter").is_dir() else run / "model"
    ours, theirs = weights(tmp_path / "out"), weights(saved)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    same_tokenizer(tmp_path / "out" / "tokenizer.json", saved / "tokenizer.json")


def same_tokenizer(ours: Path, theirs: Path) -> None:
    """The base's own file, which transformers 4.57 saves as it is; 5 saves it with a post-processor that adds nothing
    where it had none (tokenization_utils_tokenizers.py: update_post_processor)."""
    files = [json.loads(file.read_text()) for file in (ours, theirs)]
    assert {**files[0], "post_processor": None} == {**files[1], "post_processor": None}
    text = "What does <eos> xml.sax do?"
    assert Tokenizer.from_file(str(ours)).encode(text).ids == Tokenizer.from_file(str(theirs)).encode(text).ids


def test_an_earlier_one_loads_with_transformers_or_peft(run, tmp_path):
    done = consolidate(run / "checkpoints" / "step-3", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    if (tmp_path / "out" / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM as Loader
    else:
        from transformers import AutoModelForCausalLM as Loader
    model = Loader.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert bool(model(torch.tensor([[1, 2, 3]])).logits.isfinite().all())
    assert not all(
        torch.equal(a, b) for a, b in zip(weights(tmp_path / "out").values(), last(run).values(), strict=True)
    )


def last(run: Path) -> dict[str, torch.Tensor]:
    return weights(run / "adapter" if (run / "adapter").is_dir() else run / "model")


def test_an_adapter_still_says_which_base_it_is_of(run, tmp_path):
    assert consolidate(run / "checkpoints" / "step-3", tmp_path / "adapter").returncode == 0
    if not (run / "adapter").is_dir():
        assert not (tmp_path / "adapter" / "base.json").exists()
        return
    assert (tmp_path / "adapter" / "base.json").read_bytes() == (run / "adapter" / "base.json").read_bytes()
    base = Path(json.loads((run / "stages" / "fetch.json").read_text())["model_dir"])
    other = Path(shutil.copytree(base, tmp_path / "other"))
    changed = {name: tensor + 0.01 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(changed, other / "model.safetensors", {"format": "pt"})
    quick = MergeOptions(logits=False)
    for adapter in (run / "adapter", tmp_path / "adapter"):
        with pytest.raises(TrntuneError, match="was trained on another base"):
            merge(other, adapter, tmp_path / "out", quick)
    assert merge(base, tmp_path / "adapter", tmp_path / "out", quick)["same_base"]


def test_a_damaged_one_is_refused(run, tmp_path):
    copy = Path(shutil.copytree(run / "checkpoints" / "step-6", tmp_path / "step-6"))
    [file] = copy.glob("weights/*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    done = consolidate(copy, tmp_path / "out")
    assert done.returncode == 1
    assert "can't be used: weights/" in done.stderr
    assert not (tmp_path / "out").exists()
