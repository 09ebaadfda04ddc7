"""A run that says that it has finished has on the disk what it was for: a power cut would not take it away."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from launcher.paths import ROOT
from tests.conftest import TINY, command, environment
from tests.limits import PATIENCE


@pytest.mark.parametrize(("method", "result"), [("lora", "adapter"), ("full", "model")])
def test_the_weights_are_on_the_disk_before_the_stage_says_that_it_has_finished(
    tmp_path: Path, method: str, result: str
) -> None:
    run, log = tmp_path / "run", tmp_path / "synced"
    recorder = {"op": "fsync", "path": "", "from": 1, "log": str(log)}
    env = environment() | {"TRNTUNE_FAULT": json.dumps(recorder), "PYTHONPATH": str(ROOT / "tests" / "faults")}
    settings = (*TINY, f"hydra.run.dir={run}", f"method={method}", "tracking=none", "tracking.samples=0")
    process = subprocess.run(
        command(*settings, "stages=[fetch,train]"),
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert process.returncode == 0, process.stderr
    synced = log.read_text().splitlines()
    [said] = [at for at, path in enumerate(synced) if path.startswith(f"{run}/stages/.train.json.")]
    written = [path.relative_to(run / result) for path in (run / result).rglob("*")]
    assert any(path.suffix == ".safetensors" for path in written)
    beside = [str(run / f"{result}.tmp" / path) for path in (*written, "")]
    assert set(beside) <= set(synced[:said])
    # The name too: the directory that holds it, after all that is in it.
    inside = max(at for at, path in enumerate(synced[:said]) if path in beside)
    assert str(run) in synced[inside:said]
