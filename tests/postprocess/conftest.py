"""One real sweep for all tests, and edited copies of what its runs left behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from rich.console import Console

from postprocess.compare.__main__ import main
from postprocess.compare.analysis import analyse
from postprocess.compare.collect import collect
from postprocess.compare.data import to_json
from postprocess.compare.terminal import print_report
from tests.conftest import TINY, launch

# Step, held-out loss, trained tokens, seconds of training until then.
Points = list[tuple[int, float, float, float]]


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Both methods with two seeds, by the real command. Made once for all of xdist's workers; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "tiny_sweep"
    with FileLock(f"{shared}.lock"):
        if not (shared / "done").exists():
            shared.mkdir()
            done = launch(
                shared,
                "-m",
                *TINY,
                "tracking=none",
                f"hydra.sweep.dir={shared / 'sweep'}",
                "method=lora,full",
                "seed=0,1",
            )
            assert done.returncode == 0, done.stderr
            (shared / "stdout").write_text(done.stdout)
            (shared / "done").touch()
    return shared / "sweep"


@dataclass
class Maker:
    """Makes run directories from one of the sweep's, with other numbers and settings."""

    sweep: Path
    root: Path

    def __call__(
        self,
        name: str,
        method: str = "lora",
        seed: int = 0,
        config: dict[str, Any] | None = None,
        train: dict[str, Any] | None = None,
        points: Points | None = None,
    ) -> Path:
        """A run directory ``name``; ``config`` and ``train`` are dotted keys and their values."""
        [source] = self.sweep.glob(f"*_method={method},seed=0")
        directory = self.root / name
        shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
        edit(directory / ".hydra" / "config.yaml", {"seed": seed, **(config or {})})
        # What a short run on a busy machine measures is not to matter here.
        steady = {"measured_steps": 20, "step_seconds_p50": 1.0, "step_seconds_p95": 1.2}
        edit(directory / "stages" / "train.json", {"seed": seed, **steady, **(train or {})})
        if points is not None:
            write_points(directory, points)
        return directory


def edit(file: Path, changes: dict[str, Any]) -> None:
    """Set dotted keys of a JSON or YAML file."""
    is_json = file.suffix == ".json"
    values = json.loads(file.read_text()) if is_json else yaml.safe_load(file.read_text())
    for key, new in changes.items():
        *parents, last = key.split(".")
        inner = values
        for parent in parents:
            inner = inner[parent]
        inner[last] = new
    file.write_text(json.dumps(values) if is_json else yaml.safe_dump(values))


def write_points(directory: Path, points: Points) -> None:
    """The run's evaluations, between lines of its training."""
    lines = [json.dumps({"event": "train", "step": 1, "loss": 9.0})]
    for step, loss, tokens, seconds in points:
        record = {"event": "eval", "step": step, "eval_loss": loss, "examples": 1.0, "tokens": 2 * tokens}
        lines.append(json.dumps({**record, "trained_tokens": tokens, "train_seconds": seconds, "seconds": seconds + 1}))
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def make(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """Makes runs below the working directory, which is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return Maker(sweep, tmp_path)


def report(*paths: Path) -> dict[str, Any]:
    """What report.json would hold, without drawing plots; the terminal's report is printed."""
    found = analyse(collect(paths))
    print_report(Console(highlight=False), found)
    return json.loads(to_json(found))


def written(*paths: Path) -> dict[str, Any]:
    """report.json of the whole command on ``paths``, which writes into out/."""
    assert main([*map(str, paths), "--output", "out"]) == 0
    return json.loads(Path("out/report.json").read_text())


def variants(group: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The variants of a group by label."""
    return {variant["label"]: variant for variant in group["variants"]}
