"""A run's adapter merges into the base that it was trained on, and gives the loss that the run reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.errors import TrntuneError
from postprocess.merge import merge
from tests.conftest import Run
from tests.postprocess.merge.models import adapted, make_base
from trainer.models.fingerprint import fingerprint


def test_the_adapter_of_a_run_knows_its_base_and_merges_into_it(run_tiny: Callable[..., Run], tmp_path: Path) -> None:
    run = run_tiny("run", "method=lora", "tracking=none")
    assert run.process.returncode == 0, run.process.stderr
    base = Path(json.loads((run.directory / "stages" / "fetch.json").read_text())["model_dir"])
    adapter = run.directory / "adapter"
    assert json.loads((adapter / "base.json").read_text()) == {"fingerprint": fingerprint(base), "model": "tiny_llama"}
    with pytest.raises(TrntuneError, match="trained on another base"):
        merge(make_base(tmp_path / "other", "llama"), adapter, tmp_path / "out")

    record = merge(base, adapter, tmp_path / "out")
    assert record["logits"]["compared"]
    assert record["logits"]["prompts"][0].startswith("The capital of France")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("What does it do?", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = adapted(base, adapter)(tokens).logits
        torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=1e-4)
