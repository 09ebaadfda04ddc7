"""A further engine beside those that there are."""

from __future__ import annotations

import pytest

from launcher.checks.parallelism import ENGINES, check_engine
from launcher.config.schema import Config
from launcher.jobs.job import job_of
from tests.launcher.conftest import single


@pytest.fixture
def still(cwd) -> Config:
    """A configuration whose engine has another name; the schema would not let it be typed."""
    config = single("experiment=tiny").config
    config.accelerator.engine = "still"
    return config


def test_an_engine_trains_on_the_devices_that_it_is_listed_for(still, monkeypatch):
    (problem,) = check_engine(still)
    assert str(problem) == "accelerator.engine=still: accelerator.device=cpu needs torch; take a choice of accelerator="
    monkeypatch.setitem(ENGINES, "cpu", ("torch", "still"))
    assert list(check_engine(still)) == []
    still.accelerator.device = "neuron"
    (problem,) = check_engine(still)
    assert problem.why == "accelerator.device=neuron needs neuron"


def test_a_plan_says_torchrun_where_torchrun_starts_the_engine(still):
    job = job_of("train", still)
    assert (job.how, job.elastic) == ("one process", False)
