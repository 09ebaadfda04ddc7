"""What a stage's process settles before it imports what the stage uses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from launcher.jobs.run_stage import keep_xla_out
from tests.trainer.models.conftest import composed


@pytest.mark.parametrize(
    ("accelerator", "stage", "value"),
    [
        ("cpu", "train", "0"),
        ("cuda", "train", "0"),
        ("trn1_32xlarge", "train", None),
        ("trn1_32xlarge", "compile", None),
        ("trn1_32xlarge", "merge", "0"),
    ],
)
def test_torch_xla_is_looked_for_by_optimum_neuron_alone(
    accelerator: str, stage: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    keep_xla_out(stage, composed(f"accelerator={accelerator}"))
    assert os.environ.get("USE_TORCH_XLA") == value


def test_accelerate_obeys_that() -> None:
    """It looks when it is imported, in a process of its own."""
    code = "from accelerate.utils.imports import USE_TORCH_XLA; assert USE_TORCH_XLA is False"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "USE_TORCH_XLA": "0"}, check=True)
