"""What processes on Neuron get: variables, the directory of their graphs, and torchrun."""

from __future__ import annotations

import re
from dataclasses import asdict

import pytest

from launcher.executors.local import processes_here
from launcher.jobs.job import job_of
from launcher.jobs.torchrun import stage_command
from launcher.jobs.variables import variables
from launcher.neuron.graphs import differences, directory_name, shapes
from launcher.neuron.variables import graph_directory
from tests.launcher.conftest import single
from tests.launcher.neuron.test_settings import BLOG, on_neuron
from tests.library_sets import neuron_source


def test_the_environment_is_what_the_configuration_says(cwd, monkeypatch):
    monkeypatch.delenv("TRNTUNE_CACHE", raising=False)
    config = on_neuron(
        "accelerator.neuron.cache_dir=/shared/graphs", "accelerator.neuron.compiler_flags=['--model-type=transformer']",
        "accelerator.neuron.fuse_softmax=false", "accelerator.neuron.inflight_requests=7",
        "accelerator.environment=['NEURON_RT_LOG_LEVEL=INFO']", "cluster.environment=['A=1']",
    )  # fmt: skip
    graphs = f"/shared/graphs/{directory_name(config)}"
    assert variables("train", config) == variables("compile", config) == {
        "A": "1",
        "NEURON_CC_FLAGS": f"--model-type=transformer --cache_dir={graphs}",
        "NEURON_COMPILE_CACHE_URL": graphs,
        "NEURON_FUSE_SOFTMAX": "0",
        "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": "7",
        "MALLOC_ARENA_MAX": "64",
        "NEURON_RT_LOG_LEVEL": "INFO",
    }  # fmt: skip
    assert variables("merge", config) == {"A": "1"}
    assert variables("train", single("accelerator=cuda").config) == {}


@pytest.mark.parametrize(
    ("cache", "root"),
    [
        (None, "/var/tmp/trntune-neuron"),
        ("/fsx/cache", "/fsx/cache/neuron"),
        ("/home/me/.cache/trntune", "/var/tmp/trntune-neuron"),
    ],
)
def test_graphs_lie_in_the_projects_cache_where_its_path_can_be_read(cache, root, cwd, monkeypatch):
    monkeypatch.delenv("TRNTUNE_CACHE", raising=False)
    if cache:
        monkeypatch.setenv("TRNTUNE_CACHE", cache)
    assert str(graph_directory(on_neuron()).parent) == root


def test_optimum_neuron_reads_the_cache_directory_as_it_is_written(cwd):
    """The pattern of optimum/neuron/utils/cache_utils.py, from the installed file."""
    source = neuron_source("optimum/neuron/utils/cache_utils.py")
    pattern = re.search(r're\.search\(r"(--cache_dir=[^"]*)", neuron_cc_flags\)', source.read_text())
    assert pattern
    config = on_neuron("cluster=hyperpod")
    found = re.search(pattern[1], variables("train", config)["NEURON_CC_FLAGS"])
    assert found
    assert found[1] == str(graph_directory(config))


def test_efa_is_for_more_than_one_instance_and_logical_cores_for_trn2(cwd):
    many = on_neuron("parallelism=trn1_tp8_dp16_4nodes", "training.global_batch_size=16")
    assert variables("train", many)["FI_PROVIDER"] == "efa"
    assert "FI_PROVIDER" not in variables("train", on_neuron())
    trn2 = on_neuron("accelerator=trn2_48xlarge", "parallelism=trn2_tp4_dp16")
    assert variables("train", trn2)["NEURON_LOGICAL_NC_CONFIG"] == "2"


def test_torchrun_starts_every_process_of_a_layout(cwd, tmp_path):
    config = on_neuron()
    train, compiling, fetch = (job_of(stage, config) for stage in ("train", "compile", "fetch"))
    assert processes_here(train) == 32
    assert processes_here(compiling) == processes_here(fetch) == 1
    assert train.elastic
    assert not job_of("train", single().config).elastic
    assert "--nproc-per-node=1" in stage_command("train", tmp_path, 1, elastic=True)
    assert "torch.distributed.run" not in stage_command("train", tmp_path, 1)


CHANGES = [
    ("training.max_length=2048", "row length 1024 -> 2048"),
    ("training.global_batch_size=24", "accumulation 3 -> 6"),
    ("lora.r=8", "LoRA rank 16 -> 8"),
    ("dataset.packing=false", "packing true -> false"),
    ("parallelism.sequence_parallel=false", "sequence parallel true -> false"),
    ("accelerator.neuron.compiler_flags=['-O1']", "compiler flags [--model-type=transformer,--retry_failed_compilation]"
     " -> [-O1]"),
    ("accelerator.environment=['NEURON_X=1','NEURON_RT_LOG_LEVEL=INFO']", "environment none -> [NEURON_X=1]"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=lambda value: value[:40])
def test_a_setting_that_changes_the_graphs_is_named_and_has_a_directory_of_its_own(change, said, cwd):
    before, after = on_neuron(), on_neuron(change)
    assert differences(shapes(before), shapes(after)) == [said]
    assert directory_name(before) != directory_name(after)
    assert re.fullmatch(r"[\w-]+", directory_name(after))


@pytest.mark.parametrize(
    "change",
    [
        *("seed=3", "method.learning_rate=1e-5", "training.max_steps=9", "tracking.log_every=5", "output_dir=x"),
        "accelerator.environment=['NEURON_RT_LOG_LEVEL=INFO']",
    ],
)
def test_a_setting_that_does_not_is_not(change, cwd):
    assert shapes(on_neuron()) == shapes(on_neuron(change))
    assert asdict(on_neuron()) != asdict(on_neuron(change))


def test_the_plan_shows_environment_and_jobs(answer, cwd):
    done = answer(*BLOG, "plan=true", "dataset=dolly15k", "accelerator.neuron.cache_dir=/g")
    assert done.returncode == 0, done.stderr
    for piece in (
        "compile: neuron_parallel_compile",
        "NEURON_FUSE_SOFTMAX=1",
        "MALLOC_ARENA_MAX=64",
        "--cache_dir=/g/",
    ):
        assert piece in done.stdout
    assert "XLA_USE_BF16" not in done.stdout
