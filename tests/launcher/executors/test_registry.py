"""The registry of executors: each is a module, a choice of cluster.name and a YAML file."""

from __future__ import annotations

from dataclasses import fields

import pytest

from launcher.config.schema import ClusterConfig
from launcher.executors.slurm.checks import check_cluster
from launcher.jobs.executor import EXECUTORS, Entry, executor_of, is_submitted
from launcher.paths import ROOT
from tests.launcher.conftest import single


def test_executors_are_the_choices_of_the_schema_and_the_files_of_conf():
    (name,) = (field for field in fields(ClusterConfig) if field.name == "name")
    assert set(name.metadata["choices"]) == set(EXECUTORS) == {file.stem for file in (ROOT / "conf/cluster").iterdir()}


@pytest.mark.parametrize("name", EXECUTORS)
def test_every_executor_can_run_a_composition(name):
    assert callable(executor_of(ClusterConfig(name=name)).execute)


@pytest.mark.parametrize(("name", "submitted"), [("local", False), ("slurm", True), ("hyperpod", True)])
def test_what_runs_elsewhere_is_submitted(name, submitted):
    assert is_submitted(ClusterConfig(name=name)) is submitted


def test_a_further_executor_that_submits_nothing_is_named_as_it_is(cwd, monkeypatch):
    monkeypatch.setitem(EXECUTORS, "printing", Entry("launcher.executors.printing", submits=False))
    config = single().config
    config.cluster.name, config.dry_run = "printing", True
    (problem,) = check_cluster(config)
    assert problem.why == "cluster=printing submits nothing"
