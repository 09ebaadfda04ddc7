"""Medians, ranges, ratios, savings, and losses at equal steps and cost, on numbers that one can check by hand."""

from __future__ import annotations

import pytest

from tests.postprocess.conftest import report, variants

FULL, LORA = "method=full", "method=lora"


def repeated(make, method, **by_seed):
    """A run for each seed, with the given results."""
    seeds = range(len(next(iter(by_seed.values()))))
    return [make(f"{method}{seed}", method, seed, train={k: v[seed] for k, v in by_seed.items()}) for seed in seeds]


def metrics(*runs):
    """Metrics of each variant of the only group, by label."""
    [group] = report(*runs)["groups"]
    return {label: variant["metrics"] for label, variant in variants(group).items()}


def test_repeats_give_median_and_range_and_ratios_pair_runs_of_one_seed(make, capsys):
    full = repeated(make, "full", samples_per_second=[2.0, 4.0, 3.0])
    lora = repeated(make, "lora", samples_per_second=[3.0, 8.0, 5.0])
    found = metrics(*full, *reversed(lora))
    speed = found[LORA]["samples_per_second"]
    assert (speed["median"], speed["low"], speed["high"]) == (5.0, 3.0, 8.0)
    assert speed["ratio"]["value"] == pytest.approx(5 / 3)
    # 3/2, 8/4 and 5/3 by seed, though the runs were given in another order.
    assert (speed["ratio"]["low"], speed["ratio"]["high"]) == pytest.approx((1.5, 2.0))
    printed = capsys.readouterr().out
    for text in ("5.00", "(3.00 to 8.00)", "1.67x", "(1.50 to 2.00)"):
        assert text in printed
    assert "no repeats" not in printed


def test_a_ratio_has_no_range_when_the_seeds_do_not_pair_and_the_report_says_so(make):
    full = repeated(make, "full", samples_per_second=[2.0, 4.0])
    lora = repeated(make, "lora", samples_per_second=[3.0, 8.0, 5.0])
    [group] = report(*full, *lora)["groups"]
    ratio = variants(group)[LORA]["metrics"]["samples_per_second"]["ratio"]
    assert ratio == {"value": pytest.approx(5 / 3), "low": None, "high": None}
    assert any("its seeds (0, 1, 2) don't pair with those of method=full (0, 1)" in note for note in group["notes"])


def test_time_and_cost_saved_are_one_minus_the_ratio_and_throughput_gained_is_another_number(make, capsys):
    """The published confusion: 90 to 53 minutes saves 41 %, while throughput grows by 70 %."""
    full = make("full", "full", train={"train_seconds": 5400, "samples_per_second": 53.0, "cost_usd": 9.0})
    lora = make("lora", train={"train_seconds": 3180, "samples_per_second": 90.0, "cost_usd": 5.3})
    [group] = report(full, lora)["groups"]
    found = variants(group)[LORA]
    assert found["saved"]["train_seconds"]["value"] == pytest.approx(1 - 53 / 90)
    assert found["saved"]["cost_usd"]["value"] == pytest.approx(1 - 53 / 90)
    assert found["gained"]["samples_per_second"]["value"] == pytest.approx(90 / 53 - 1)
    lines = capsys.readouterr().out.splitlines()
    assert any("training time saved" in line and "41.1 %" in line for line in lines)
    assert any("cost saved" in line and "41.1 %" in line for line in lines)
    assert any("throughput gained" in line and "69.8 %" in line for line in lines)
    assert variants(group)[FULL]["saved"] == {}


def test_the_range_of_what_is_saved_is_turned_round(make):
    full = repeated(make, "full", train_seconds=[100.0, 100.0])
    lora = repeated(make, "lora", train_seconds=[50.0, 80.0])
    [group] = report(*full, *lora)["groups"]
    saved = variants(group)[LORA]["saved"]["train_seconds"]
    assert (saved["value"], saved["low"], saved["high"]) == pytest.approx((0.35, 0.2, 0.5))


def test_losses_are_compared_at_the_largest_step_that_all_evaluated(make, capsys):
    full = make("full", "full", points=[(0, 4.0, 0, 0), (4, 3.0, 40, 4), (8, 2.0, 80, 8)])
    lora = make("lora", points=[(0, 4.0, 0, 0), (2, 3.9, 20, 1), (4, 3.5, 40, 2), (6, 3.2, 60, 3)])
    found = metrics(full, lora)
    assert found[FULL]["eval_loss_at_equal_steps"]["median"] == 3.0
    assert found[LORA]["eval_loss_at_equal_steps"]["median"] == 3.5
    assert "(step 4)" in capsys.readouterr().out


def test_the_untrained_model_is_no_comparison_at_equal_steps(make, capsys):
    full = make("full", "full", points=[(0, 4.0, 0, 0), (3, 3.0, 40, 4)])
    lora = make("lora", points=[(0, 4.0, 0, 0), (4, 3.5, 40, 2)])
    found = metrics(full, lora)
    assert found[FULL]["eval_loss_at_equal_steps"] is None
    assert "equal steps" not in " ".join(capsys.readouterr().out.split())


FULL_POINTS = [(0, 4.0, 0, 0), (4, 3.0, 40, 10), (8, 2.0, 80, 30)]
LORA_POINTS = [(0, 4.0, 0, 0), (4, 3.5, 40, 8), (8, 3.1, 80, 20)]


def test_without_a_price_losses_are_compared_at_equal_training_time(make, capsys):
    found = metrics(make("full", "full", points=FULL_POINTS), make("lora", points=LORA_POINTS))
    # LoRA's last evaluation is at 20 s; full fine-tuning was half-way from 3.0 at 10 s to 2.0 at 30 s.
    assert found[FULL]["eval_loss_at_equal_cost"]["median"] == pytest.approx(2.5)
    assert found[LORA]["eval_loss_at_equal_cost"]["median"] == pytest.approx(3.1)
    assert found[LORA]["eval_loss_at_equal_cost"]["ratio"]["value"] == pytest.approx(3.1 / 2.5)
    printed = capsys.readouterr().out.partition("Published")[0]
    assert "equal training time" in printed
    assert "(20 s)" in printed
    assert "cost" not in printed


def test_with_a_price_the_budget_is_dollars_of_optimizer_steps(make):
    price = {
        "accelerator.price_usd_per_hour": 36.0,
        "accelerator.price_source": "list",
        "accelerator.price_date": "2026-01-31",
    }
    full = make("full", "full", config=price, points=FULL_POINTS, train={"cost_usd": 0.5})
    lora = make("lora", config=price, points=LORA_POINTS, train={"cost_usd": 0.4})
    [group] = report(full, lora)["groups"]
    assert group["equal_budget"] == {"amount": pytest.approx(0.2), "unit": "usd"}  # 20 s at 0.01 USD a second
    found = {label: variant["metrics"] for label, variant in variants(group).items()}
    assert found[FULL]["eval_loss_at_equal_cost"]["median"] == pytest.approx(2.5)
    assert found[LORA]["cost_usd"]["ratio"]["value"] == pytest.approx(0.8)
    assert "price: 36 USD an hour of an instance (list, 2026-01-31)" in group["notes"]


def test_a_run_on_several_instances_costs_as_much_as_all_of_them(make):
    price = {"accelerator.price_usd_per_hour": 36.0}
    full = make("full", "full", config=price, points=FULL_POINTS, train={"instances": 4})
    lora = make("lora", config=price, points=LORA_POINTS, train={"instances": 4})
    [group] = report(full, lora)["groups"]
    assert group["equal_budget"] == {"amount": pytest.approx(0.8), "unit": "usd"}  # 20 s at 4 x 0.01 USD a second


def test_runs_with_different_prices_are_compared_for_the_same_money(make):
    full = make("full", "full", config={"accelerator.price_usd_per_hour": 36.0}, points=FULL_POINTS)
    lora = make("lora", config={"accelerator.price_usd_per_hour": 18.0}, points=LORA_POINTS)
    [group] = report(full, lora)["groups"]
    # 20 s at half the price is 0.1 USD, which buys 10 s of the other.
    assert [v["metrics"]["eval_loss_at_equal_cost"]["median"] for v in group["variants"]] == pytest.approx([3.0, 3.1])
    assert list(variants(group)) == [
        "method=full, accelerator.price_usd_per_hour=36.0",
        "method=lora, accelerator.price_usd_per_hour=18.0",
    ]


def test_each_repeat_is_interpolated_on_its_own_evaluations(make):
    runs = [make("full", "full", points=FULL_POINTS)]
    runs += [make(f"lora{s}", seed=s, points=[(0, 4.0, 0, 0), (8, 2.0 + s, 80, 40)]) for s in (0, 1)]
    found = metrics(*runs)
    loss = found[LORA]["eval_loss_at_equal_cost"]
    assert loss["values"] == pytest.approx([4.0 - 2.0 * 30 / 40, 4.0 - 1.0 * 30 / 40])


def test_a_number_that_one_repeat_lacks_is_not_a_median_of_the_others(make):
    runs = [make("full", "full"), make("a", points=LORA_POINTS), make("b", seed=1, points=[])]
    [group] = report(*runs)["groups"]
    assert variants(group)[LORA]["metrics"]["eval_loss_at_equal_cost"] is None
    assert group["equal_step"] is None
    assert any("1 of 2 runs have no evaluations" in note for note in group["notes"])


def test_rows_that_nobody_measured_are_left_out_and_no_cost_is_guessed(make, capsys):
    metrics(make("full", "full"), make("lora"))
    printed = capsys.readouterr().out.partition("Published")[0]
    for absent in ("cost", "MFU", "compile", "device"):
        assert absent not in printed
    metrics(make("full2", "full", train={"cost_usd": 2.0, "mfu": 0.25}), make("lora2"))
    lines = [line.split() for line in capsys.readouterr().out.partition("Published")[0].splitlines()]
    assert ["cost,", "USD", "2.0000", "-", "-"] in lines
    assert ["MFU,", "%", "25.00", "-", "-"] in lines


def test_a_diverged_run_makes_neither_a_wrong_number_nor_broken_json(make):
    full = make("full", "full", points=FULL_POINTS)
    lora = make("lora", points=[(0, 4.0, 0, 0), (4, float("nan"), 40, 8)], train={"eval_loss_after": float("nan")})
    [group] = report(full, lora)["groups"]
    assert variants(group)[LORA]["metrics"]["eval_loss_after"] is None
    assert group["equal_step"] is None


def test_of_a_step_that_was_evaluated_twice_the_later_loss_counts(make):
    lora = make("lora", points=[(0, 4.0, 0, 0), (4, 9.9, 40, 8), (4, 3.0, 40, 8)])
    assert metrics(lora)["method=lora"]["eval_loss_at_equal_steps"]["median"] == 3.0


def test_published_figures_are_derived_from_what_was_published(make):
    found = report(make("lora"))["published"]
    full, lora = found["corrected"]
    assert full["trainable_params"] == 8_030_261_248
    assert lora["trainable_params"] == 6_815_744
    assert [round(each["samples_per_second"], 2) for each in (full, lora)] == [8.33, 14.22]
    assert [round(each["minutes_from_rate"], 1) for each in (full, lora)] == [90.1, 52.8]
    assert [round(each["mfu_padded"], 2) for each in (full, lora)] == [0.14, 0.16]
    assert round(found["time_and_cost_saved"], 2) == 0.41
    assert round(found["throughput_gained"], 3) == 0.706
    assert [each["trainable_params"] for each in found["raw"]] == [7_570_591_744, 6_815_744]
