"""What a stage's process settles before it imports what the stage uses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from launcher.jobs.run_stage import keep_xla_out
from tests.trainer.models.conftest import composed


@pytest.mark.parametrize(("accelerator", "value"), [("cpu", "0"), ("cuda", "0"), ("trn1_32xlarge", None)])
def test_torch_xla_is_looked_for_by_optimum_neuron_alone(
    accelerator: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    keep_xla_out(composed(f"accelerator={accelerator}"))
    assert os.environ.get("USE_TORCH_XLA") == value


def test_accelerate_obeys_that() -> None:
    """It looks when it is imported, in a process of its own."""
    code = "from accelerate.utils.imports import USE_TORCH_XLA; assert USE_TORCH_XLA is False"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "USE_TORCH_XLA": "0"}, check=True)
