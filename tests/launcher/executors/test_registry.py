"""The registry of executors: each is a module, a choice of cluster.name and a YAML file."""

from __future__ import annotations

from dataclasses import fields

import pytest

from launcher.config.schema import ClusterConfig
from launcher.jobs.executor import EXECUTORS, executor_of, is_submitted
from launcher.paths import ROOT


def test_executors_are_the_choices_of_the_schema_and_the_files_of_conf():
    (name,) = (field for field in fields(ClusterConfig) if field.name == "name")
    assert set(name.metadata["choices"]) == set(EXECUTORS) == {file.stem for file in (ROOT / "conf/cluster").iterdir()}


@pytest.mark.parametrize("name", EXECUTORS)
def test_every_executor_can_run_a_composition(name):
    assert callable(executor_of(ClusterConfig(name=name)).execute)
    assert is_submitted(ClusterConfig(name=name)) is (name != "local")
