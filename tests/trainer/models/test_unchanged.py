"""A run that has changed no weight is found out, and one that has changed a bit of one is not taken for it."""

from __future__ import annotations

import json

import pytest
import torch

from postprocess.compare.collect import collect
from trainer.models import unchanged
from trainer.models.unchanged import checksums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_a_checksum_sees_every_bit(dtype, monkeypatch):
    monkeypatch.setattr(unchanged, "_PIECE", 16)
    torch.manual_seed(0)
    tensors = {"a": torch.randn(7, 9).to(dtype), "scalar": torch.tensor(3.0, dtype=dtype), "none": torch.empty(0)}
    before = checksums(tensors)
    assert before == checksums({name: tensor.clone() for name, tensor in tensors.items()})
    for place in (0, 31, 62):
        changed = tensors["a"].clone()
        changed.view(-1)[place] = torch.nextafter(changed.view(-1)[place].float(), torch.tensor(9.0)).to(dtype)
        changed.view(-1)[place] += torch.finfo(dtype).eps * 8
        found = checksums({**tensors, "a": changed})
        assert (found["a"] != before["a"], found["scalar"]) == (True, before["scalar"])
    assert checksums({"a": tensors["a"].T}) == {"a": before["a"]}  # not contiguous: the same numbers


def test_a_run_that_changes_no_weight_says_so_and_is_compared_with_none(run_tiny):
    run = run_tiny("run", "method=full", "training.learning_rate=1e-60", "tracking=none", "tracking.samples=0")
    assert run.process.returncode == 0, run.process.stderr
    assert run.result["weights_changed"] is False
    assert run.result["eval_loss_before"] == run.result["eval_loss_after"]
    assert "warning: 6 steps changed none of the trained weights" in run.process.stderr
    assert "not one has changed" in run.process.stdout
    found = collect([run.directory])
    assert found.runs == []
    assert [entry.reason for entry in found.excluded] == ["its 6 steps changed none of the trained weights"]
    # Runs of before it was looked at are compared as ever.
    file = run.directory / "stages" / "train.json"
    file.write_text(json.dumps({key: value for key, value in run.result.items() if key != "weights_changed"}))
    assert len(collect([run.directory]).runs) == 1
