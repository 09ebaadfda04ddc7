"""Stage compile and the training after it, as real processes. AWS's tools are imitated by what they leave on disk: they
can't be installed here (docs/trainium.md says what that leaves unproven)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from launcher.config.schema import Config, NeuronConfig
from launcher.executors.local import run_stages
from launcher.io import write_atomic
from launcher.neuron.variables import graph_directory
from launcher.run_dir.attempts import Attempts
from launcher.run_dir.layout import RunDir
from launcher.run_dir.provenance import write_records
from tests.launcher.conftest import single

IMITATION = Path(__file__).parent / "imitation"
TINY = (
    "experiment=tiny", "tracking=none", "tracking.samples=0", "training.max_length=128", "training.max_steps=4",
    "training.eval_every=2", "tracking.skip_steps=1",
)  # fmt: skip


@dataclass
class Instance:
    """A machine with AWS's tools on it, and one run."""

    run_dir: RunDir
    config: Config
    patch: pytest.MonkeyPatch

    def run(self, *stages: str) -> int:
        """Run these stages as launch.py would."""
        self.config.stages = list(stages)
        self.configure()
        return run_stages(self.config, self.run_dir)

    def configure(self) -> None:
        write_atomic(self.run_dir.config_file, OmegaConf.to_yaml(OmegaConf.structured(self.config)))

    def result(self, stage: str) -> dict[str, Any]:
        return json.loads(self.run_dir.stage_file(stage).read_text())

    def modules(self) -> list[Path]:
        return sorted(graph_directory(self.config).glob("neuronxcc-*/MODULE_*"))


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.mktemp("instance")
        patch.chdir(base)
        patch.setenv("PYTHONPATH", str(IMITATION))
        patch.setenv("PATH", str(IMITATION / "bin"), prepend=":")
        composed = single(*TINY)
        composed.config.accelerator.neuron = NeuronConfig(cache_dir=str(base / "graphs").replace(".", "_"))
        run_dir = RunDir(base / "run")
        write_records(run_dir, composed.config, composed.hydra, composed.overrides)
        yield Instance(run_dir, composed.config, patch)


@pytest.fixture(scope="module")
def compiled(instance: Instance) -> Instance:
    assert instance.run("fetch", "compile", "train") == 0
    return instance


def forget(instance: Instance, graphs: bool = True) -> None:
    """The training that there was, and the compiled graphs."""
    for module in instance.modules() if graphs else []:
        (module / "model.done").unlink(missing_ok=True)
    shutil.rmtree(instance.run_dir.checkpoints, ignore_errors=True)
    for file in (instance.run_dir.attempts, instance.run_dir.stage_file("train")):
        file.unlink(missing_ok=True)


def test_training_after_it_compiles_nothing(compiled: Instance):
    stage, train = compiled.result("compile"), compiled.result("train")
    assert stage["compiled"] == len(stage["graphs"]) == len(compiled.modules()) >= 2
    assert stage["compiler"] == ["2.21.33363.0+82129205"]
    assert stage["cache_hits"] == 0
    assert (train["status"], train["steps"]) == ("finished", 4)
    assert (train["graphs_available"], train["graphs_compiled"]) == (len(stage["graphs"]), 0)
    assert train["compile_seconds"] == 0
    assert train["precompile_seconds"] == stage["seconds"] > 0


def test_the_trial_leaves_graphs_and_nothing_else(compiled: Instance):
    assert not (compiled.run_dir.path / "trial").exists()
    assert [attempt.outcome for attempt in Attempts(compiled.run_dir.attempts).read()] == ["finished"]
    assert sorted(path.name for path in compiled.modules()[0].iterdir()) == [
        "compile_flags.json", "model.done", "model.hlo_module.pb", "model.neff",
    ]  # fmt: skip


def test_another_run_of_the_same_shapes_needs_no_tool(compiled: Instance, capfd: pytest.CaptureFixture[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/usr/bin:/bin")
        compiled.run_dir.stage_file("compile").unlink()
        compiled.config.seed = 1
        assert compiled.run("compile") == 0
    compiled.config.seed = 0
    stage = compiled.result("compile")
    assert (stage["compiled"], stage["cache_hits"], stage["seconds"]) == (0, len(stage["graphs"]), 0)
    assert "are compiled already" in capfd.readouterr().err


def test_a_changed_shape_is_named_before_the_model_is_loaded(compiled: Instance, capfd: pytest.CaptureFixture[str]):
    forget(compiled, graphs=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled.config.training, "max_length", 256)
        assert compiled.run("train") == 1
    error = capfd.readouterr().err
    assert "stage compile has compiled for other graphs: row length 128 -> 256; run it again" in error
    assert "parameters" not in error


def test_a_graph_that_the_stage_had_not_seen_stops_training(compiled: Instance, capfd: pytest.CaptureFixture[str]):
    forget(compiled)
    assert compiled.run("train") == 1
    error = capfd.readouterr().err
    assert "compiled in training that stage compile had not seen" in error
    assert compiled.modules()[0].parent.name in error
    assert not compiled.run_dir.stage_file("train").exists()


def test_or_is_told_and_counted(compiled: Instance, capfd: pytest.CaptureFixture[str]):
    forget(compiled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled.config.accelerator.neuron, "on_new_graph", "warn")
        patch.setenv("IMITATED_SECONDS", "0.5")
        assert compiled.run("train") == 0
    train = compiled.result("train")
    assert "warning: " in capfd.readouterr().err
    assert (train["steps"], train["graphs_available"]) == (4, 0)
    assert train["graphs_compiled"] == len(compiled.modules())
    assert train["compile_seconds"] > 0.9
    parts = ("load", "data", "compile", "train", "eval", "sample", "save")
    assert sum(train[f"{part}_seconds"] for part in parts) <= train["wall_seconds"]


def test_a_graph_that_does_not_compile_is_named(compiled: Instance, capfd: pytest.CaptureFixture[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled.config.training, "weight_decay", 0.3)
        patch.setenv("IMITATED_FAILURE", "1")
        assert compiled.run("compile") == 1
    error = capfd.readouterr().err
    assert "graphs are not compiled: the compiler gave up neuronxcc-2.21.33363.0+82129205/MODULE_" in error
    assert "model.log" in error
    assert not compiled.run_dir.stage_file("compile").exists()
    assert not (compiled.run_dir.path / "trial").exists()


def test_a_machine_without_the_tool_is_told_where_it_comes_from(instance: Instance, capfd: pytest.CaptureFixture[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instance.config.training, "weight_decay", 0.7)
        patch.setenv("PATH", "/usr/bin:/bin")
        assert instance.run("fetch", "compile") == 1
    assert "neuron_parallel_compile is not on PATH: it comes with torch-neuronx" in capfd.readouterr().err
