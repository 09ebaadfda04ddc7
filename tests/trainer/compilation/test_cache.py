"""The cache of compiled graphs as files, and what is noted beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.config.schema import Config
from launcher.neuron.graphs import shapes
from launcher.neuron.variables import cache_root, graph_directory
from tests.launcher.conftest import single
from tests.library_sets import neuron_source
from trainer.compilation import record
from trainer.compilation.cache import busy_seconds, compiled, modules
from trainer.compilation.trial import tracing, trial_config
from trainer.compilation.watch import Graphs, graphs_requested
from trainer.metrics.throughput import Stopwatch

COMPILER = "neuronxcc-2.21.33363.0+82129205"


def module(directory: Path, name: str, start: float = 0, stop: float | None = 1, graph: str = "model.hlo_module.pb"):
    """A graph that was traced at ``start`` and compiled at ``stop``; None: it is not compiled."""
    path = directory / COMPILER / f"MODULE_{name}+e30acd3a"
    path.mkdir(parents=True)
    for file, when in ((graph, start), *((file, stop) for file in ("model.neff", "model.done") if stop is not None)):
        (path / file).touch()
        os.utime(path / file, (when, when))
    return path


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return single(
        "accelerator=trn1_32xlarge", "model=llama3_8b", "parallelism=trn1_tp8_dp4", "training.precision=bf16",
        f"accelerator.neuron.cache_dir={tmp_path / 'graphs'}",
    ).config  # fmt: skip


def test_a_graph_counts_once_the_compiler_has_finished_it(tmp_path):
    module(tmp_path, "1")
    module(tmp_path, "2", stop=None)
    failed = module(tmp_path, "3", stop=None)
    (failed / "model.log").touch()
    module(tmp_path, "4", graph="model.hlo.pb")
    (tmp_path / COMPILER / "MODULE_5+e30acd3a.lock").touch()
    assert [(m.path.name[7], m.compiled, m.failed) for m in modules(tmp_path)] == [
        ("1", True, False), ("2", False, False), ("3", False, True), ("4", True, False),
    ]  # fmt: skip
    assert list(compiled(tmp_path)) == [f"{COMPILER}/MODULE_{n}+e30acd3a" for n in "14"]


def test_compilers_that_run_at_the_same_time_are_counted_once(tmp_path):
    module(tmp_path, "1", 100, 110)
    module(tmp_path, "2", 105, 120)
    module(tmp_path, "3", 106, 108)
    module(tmp_path, "4", 200, 201)
    assert busy_seconds(modules(tmp_path), since=0) == 21
    assert busy_seconds(modules(tmp_path), since=109) == 12
    assert busy_seconds([], since=0) == 0


def test_what_was_compiled_in_a_part_is_not_counted_twice():
    watch = Stopwatch({"train": 10.0, "eval": 1.0})
    watch.move("train", "compile", 4.0)
    watch.move("eval", "compile", 4.0)
    watch.move("eval", "compile", -1.0)
    assert watch.so_far() == {"train": 6.0, "eval": 0.0, "compile": 5.0}


def test_a_record_is_good_for_its_graphs_packages_and_code(config, monkeypatch):
    directory = graph_directory(config)
    path = module(directory, "1")
    assert record.valid(config, directory) is None
    record.write(config, directory, compiled(directory))
    assert record.valid(config, directory).graphs == [f"{COMPILER}/MODULE_1+e30acd3a"]
    with monkeypatch.context() as patch:
        patch.setattr(record, "installed_packages", lambda names: dict.fromkeys(names, "0"))
        assert record.valid(config, directory) is None
    with monkeypatch.context() as patch:
        patch.setattr(record, "code_digest", lambda: "0")
        assert record.valid(config, directory) is None
    (path / "model.done").unlink()
    assert record.valid(config, directory) is None
    (directory / record.FILE).write_text("{")
    assert record.valid(config, directory) is None


def test_without_the_stage_the_nearest_configuration_is_named(config):
    said: list[str] = []
    for length, rank in ((1024, 16), (512, 8)):
        config.training.max_length, config.lora.r = length, rank
        directory = graph_directory(config)
        module(directory, "1")
        record.write(config, directory, compiled(directory))
    config.training.max_length, config.lora.r = 2048, 16
    Graphs(config, None, said.append)
    assert said[0].startswith("note: without stage compile, each graph that is not in the cache is compiled")
    assert said[0].endswith("with other settings: row length 1024 -> 2048")
    assert record.nearest(config, Path(cache_root(config)) / "nowhere") == []


def test_a_graph_from_before_is_no_new_one(config):
    directory, said = graph_directory(config), list[str]()
    module(directory, "1")
    graphs = Graphs(config, {"shapes": shapes(config), "seconds": 3.0}, said.append)
    graphs.stops = False
    graphs.check()
    assert said == []
    module(directory, "2")
    graphs.check()
    graphs.check()
    assert len(said) == 1
    assert "1 graph was compiled" in said[0]
    assert "MODULE_2" in said[0]


def test_the_trial_is_the_same_run_for_ten_steps(config):
    config.training.max_steps = None
    trial = trial_config(config)
    assert (trial.training.max_steps, trial.training.save_every, trial.tracking.enabled) == (10, None, False)
    assert shapes(trial) == shapes(config)
    assert graph_directory(trial) == graph_directory(config)
    config.training.max_steps = 4
    assert trial_config(config).training.max_steps == 4


def test_a_trial_is_known_by_the_tools_variable(monkeypatch):
    """The same one that optimum-neuron reads, from the installed file."""
    source = neuron_source("optimum/neuron/utils/misc.py")
    assert 'os.environ.get("NEURON_EXTRACT_GRAPHS_ONLY") == "1"' in source.read_text()
    monkeypatch.setenv("NEURON_EXTRACT_GRAPHS_ONLY", "1")
    assert tracing()
    monkeypatch.delenv("NEURON_EXTRACT_GRAPHS_ONLY")
    assert not tracing()


def test_graphs_are_counted_by_torch_xla():
    pytest.importorskip("torch_xla", reason="torch_xla's counters: its CPU build needs torch 2.8")
    import torch
    import torch_xla
    import torch_xla.core.xla_model as xm

    before = graphs_requested() or 0
    value = torch.ones(3, 5, device=xm.xla_device()) * 7
    torch_xla.sync()
    assert value.cpu().sum() == 105
    assert graphs_requested() > before
