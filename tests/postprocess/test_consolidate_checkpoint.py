"""The torch engine's checkpoints become directories that anyone can load."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launcher.paths import ROOT
from tests.conftest import TINY, launch
from tests.limits import PATIENCE


@pytest.fixture(scope="module", params=["lora", "full"])
def run(request, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    process = launch(directory, *TINY, f"method={request.param}", "tracking=none", f"hydra.run.dir={directory}/run")
    assert process.returncode == 0, process.stderr
    return directory / "run"


def consolidate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "postprocess.consolidate", *map(str, arguments)]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
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
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (saved / "tokenizer.json").read_bytes()


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


def test_a_damaged_one_is_refused(run, tmp_path):
    copy = Path(shutil.copytree(run / "checkpoints" / "step-6", tmp_path / "step-6"))
    [file] = copy.glob("weights/*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    done = consolidate(copy, tmp_path / "out")
    assert done.returncode == 1
    assert "can't be used: weights/" in done.stderr
    assert not (tmp_path / "out").exists()
