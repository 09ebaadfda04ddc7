"""Numbers of a run's result that no small run can show."""

from __future__ import annotations

import pytest

from tests.launcher.conftest import single
from trainer.result import cost_usd, hardware

PRICE = ("accelerator.price_usd_per_hour=20", "accelerator.price_source=list", "accelerator.price_date=2026-01-31")
TRN1 = ("accelerator=trn1_32xlarge", "model=llama3_8b")


@pytest.mark.parametrize(
    ("layout", "devices", "cost"),
    [("trn1_tp8_dp4", 32, 10.0), ("trn1_tp8_dp16_4nodes", 128, 40.0)],
    ids=["one instance", "four instances"],
)
def test_devices_and_cost_are_of_all_processes_and_instances(layout, devices, cost):
    """Half an hour at 20 USD an hour and instance."""
    config = single(*TRN1, f"parallelism={layout}", *PRICE).config
    assert hardware(config)["devices"] == devices
    assert cost_usd(config, 1800) == pytest.approx(cost)


def test_without_a_price_there_is_no_cost():
    assert cost_usd(single(*TRN1, "parallelism=trn1_tp8_dp4").config, 1800) is None
