"""docs/scaling.md is what the plan says, and the plan's scaling behaves as such a cluster would."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.architecture.parameters import count
from launcher.config.schema import world_size
from launcher.paths import ROOT
from launcher.plan import scaling
from launcher.plan.scaling import base, exchange_seconds, fastest, layouts


def test_the_page_shows_what_the_command_prints():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert scaling.tables() in page, "put what `python -m launcher.plan.scaling` prints into it"


def test_one_instance_is_the_published_run():
    """Padded to 1,024, 12 rows a step, as published: 8.33 and 14.22 samples a second."""
    for method, expected in (("full", 8.33), ("lora", 14.22)):
        config, facts = base("llama3_8b", method)
        training = replace(config.training, max_length=1024, global_batch_size=12, micro_batch_size=1)
        published = scaling.row(replace(config, training=training), facts, 1)
        assert 12 / published.compute_seconds == pytest.approx(expected, rel=0.02)
        assert published.exchange_seconds == 0


def test_every_layout_uses_every_core_and_the_chosen_one_fits():
    config, facts = base("llama3_70b", "full")
    assert {world_size(each) for each in layouts(config, 4)} == {128}
    assert fastest(config, facts, 1) is None
    chosen = fastest(config, facts, 4)
    assert chosen is not None
    assert chosen.memory_share <= 1
    assert chosen.config.parallelism.pipeline_parallel > 1


def test_the_exchange_between_instances_is_the_whole_model_of_every_instance():
    config, facts = base("llama3_8b", "full")
    parallel = replace(config.parallelism, data_parallel=16)
    spread = replace(config, parallelism=parallel)
    parameters = count(spread, facts)
    # 8 parts of the model, each 6 bytes a parameter, 15 of 16 pieces of it, at 50 GB/s.
    assert exchange_seconds(spread, parameters, 4) == pytest.approx(6 * 8.03e9 * 15 / 16 / 50e9, rel=0.01)
    assert exchange_seconds(config, parameters, 1) == 0


def test_limits_are_named_where_they_cost_a_fifth():
    config, facts = base("llama3_8b", "full")
    few = fastest(config, facts, 1)
    many = fastest(config, facts, 64)
    assert few is not None
    assert many is not None
    assert few.limits == []
    assert "compile time" in many.limits
    assert scaling.COMMUNICATION in replace(many, exchange_seconds=many.compute_seconds).limits
