"""The benchmark of the plan: its order and its arithmetic. What it measures is not looked at."""

from __future__ import annotations

import json

import pytest

from benchmarks import plan

CALM = plan.Round(0.9, 1.1, 1.25, 2e9, 2.5e9)
DISTURBED = plan.Round(1.0, 3.0, 1.0, 2e9, 2.5e9)


def test_a_round_is_the_mean_of_both_plans_over_the_median_step():
    assert CALM.time_ratio == pytest.approx(0.8)
    assert CALM.memory_ratio == pytest.approx(0.8)
    assert CALM.drift == pytest.approx(0.2)
    assert DISTURBED.drift == pytest.approx(1)


def test_every_round_is_between_two_plans_and_the_cases_take_turns(tmp_path, monkeypatch, capsys):
    called: list[str] = []

    def planned(cwd, overrides):
        called.append(f"plan {overrides[-1]}")
        return {"duration": {"step_seconds": float(len(called))}, "memory_bytes": {"total": 2e9}}

    def trained(directory, overrides):
        called.append(f"train {directory.name}")
        return {"step_seconds_p50": 2.0, "peak_memory_bytes": 1e9}

    monkeypatch.setattr(plan, "planned", planned)
    monkeypatch.setattr(plan, "trained", trained)
    monkeypatch.setattr(plan, "_launch", lambda cwd, *arguments: called.append(arguments[-2]))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "plan.json"
    assert plan.main(["--sizes", "13m", "--repeats", "2", "--steps", "5", "--json", str(file)]) == 0
    around = "plan training.max_steps=5"
    turns = [[around, f"train 13m-{method}-{number}", around] for number in (0, 1) for method in ("lora", "full")]
    assert called == ["stages=[fetch]"] * 2 + [each for turn in turns for each in turn]
    cases = json.loads(file.read_text())["cases"]
    assert list(cases) == ["13m-lora", "13m-full"]
    assert [each["time_ratio"] for each in cases["13m-lora"]["rounds"]] == [2.0, 5.0]
    assert cases["13m-lora"]["time_ratio"] == 3.5
    assert cases["13m-full"]["memory_ratio"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert "13m-full" in capsys.readouterr().out.rpartition("planned / measured")[2]


@pytest.mark.parametrize("wrong", [["--sizes", "9B"], ["--methods", "dora"], ["--repeats", "0"], ["--steps", "1"]])
def test_usage(wrong, capsys):
    assert plan.main(wrong) == 2
    assert capsys.readouterr().err.startswith(f"error: {wrong[0]} {wrong[1]}: a")
