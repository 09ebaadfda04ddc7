"""The command: what it reads, where it writes, its errors and exit codes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.paths import ROOT
from postprocess.compare.__main__ import main
from tests.postprocess.conftest import edit, report, variants, written

FILES = {"report.md", "report.html", "runs.csv", "report.json"}


def test_a_sweep_ends_with_the_report_and_leaves_it_below_the_sweep(sweep):
    printed = (sweep.parent / "stdout").read_text()
    assert "FPFT against PEFT: tiny_llama on python_docs" in printed
    assert "sweep/report/report.html" in printed
    assert {file.name for file in (sweep / "report").iterdir()} == FILES


def test_the_numbers_of_json_and_csv_are_those_of_the_runs(sweep, make):
    shutil.copytree(sweep, "sweep", ignore=shutil.ignore_patterns("report"))
    [group] = written(Path("sweep"))["groups"]
    results = {
        str(path.parent.parent): json.loads(path.read_text()) for path in Path("sweep").glob("*/stages/train.json")
    }
    assert len(results) == 4

    for variant in group["variants"]:
        for run in variant["runs"]:
            assert run["train"] == results[run["run"]]
    full, lora = (
        [results[run["run"]] for run in variants(group)[f"method={name}"]["runs"]] for name in ("full", "lora")
    )
    speed = variants(group)["method=lora"]["metrics"]["samples_per_second"]
    rates = [[run["samples_per_second"] for run in runs] for runs in (full, lora)]
    assert speed["median"] == pytest.approx(sum(rates[1]) / 2)
    assert speed["ratio"]["value"] == pytest.approx(sum(rates[1]) / sum(rates[0]))
    pairs = [mine / base for base, mine in zip(*rates, strict=True)]
    assert (speed["ratio"]["low"], speed["ratio"]["high"]) == pytest.approx((min(pairs), max(pairs)))

    with Path("out/runs.csv").open() as stream:
        lines = {line["run"]: line for line in csv.DictReader(stream)}
    assert set(lines) == set(results)
    for name, result in results.items():
        for key, number in result.items():
            if isinstance(number, float):
                assert float(lines[name][key]) == number
        assert lines[name]["data.sha256"] == result["data"]["sha256"]
        assert lines[name]["config.training.max_steps"] == "6"
        assert float(lines[name]["eval_loss_at_equal_steps"]) == result["eval_loss_after"]


def test_files_go_below_a_single_sweep_else_into_the_working_directory(sweep, make):
    shutil.copytree(sweep, "sweep", ignore=shutil.ignore_patterns("report"))
    assert main(["sweep", "--no-files"]) == 0
    assert not Path("sweep/report").exists()
    assert main(["sweep"]) == 0
    assert {file.name for file in Path("sweep/report").iterdir()} == FILES
    assert not Path("report").exists()
    runs = [str(path) for path in Path("sweep").iterdir() if "=" in path.name]
    assert main(runs[:2]) == 0
    assert {file.name for file in Path("report").iterdir()} == FILES


def test_a_directory_of_runs_and_a_directory_of_sweeps_are_read(sweep, make):
    make("runs/one", "full")
    make("runs/two")
    (make.root / "runs" / "notes").mkdir()
    assert len(written(Path("runs"))["groups"][0]["variants"]) == 2
    shutil.copytree(sweep, "sweeps/first", ignore=shutil.ignore_patterns("report"))
    assert sum(len(each["runs"]) for each in written(Path("sweeps"))["groups"][0]["variants"]) == 4


def test_a_run_that_is_given_twice_is_not_its_own_repeat(make):
    full, lora = make("runs/full", "full"), make("runs/lora")
    [group] = written(make.root / "runs", full, lora, full)["groups"]
    assert [len(variant["runs"]) for variant in group["variants"]] == [1, 1]


def test_runs_that_cannot_be_compared_are_named_with_the_reason(make, capsys):
    runs = {
        name: make(f"sweep/{name}") for name in ("0_good", "1_interrupted", "2_failed", "3_killed", "4_old", "5_bad")
    }
    runs["6_no_metrics"] = make("sweep/6_no_metrics")
    edit(runs["1_interrupted"] / "stages" / "train.json", {"status": "interrupted", "steps": 3})
    for name in ("2_failed", "3_killed"):
        (runs[name] / "stages" / "train.json").unlink()
    old = json.loads((runs["4_old"] / "stages" / "train.json").read_text())
    del old["data"]["sha256"]
    (runs["4_old"] / "stages" / "train.json").write_text(json.dumps(old))
    (runs["5_bad"] / "stages" / "train.json").write_text('{"status": ')
    (runs["6_no_metrics"] / "metrics.jsonl").unlink()
    # The sweep was killed before it had noted all of its runs, and one has been deleted since.
    noted = [{"directory": "0_good", "exit_code": 0}, {"directory": "2_failed", "exit_code": 3}]
    (make.root / "sweep" / "sweep.json").write_text(
        json.dumps({"runs": [*noted, {"directory": "9_gone", "exit_code": 0}]})
    )

    found = written(Path("sweep"))
    reasons = {each["name"]: each["reason"] for each in found["excluded"]}
    expected = {
        "1_interrupted": "interrupted after 3 steps",
        "2_failed": "failed with exit code 3",
        "3_killed": "unfinished",
        "4_old": "has no data.sha256",
        "5_bad": "train.json is not JSON",
        "6_no_metrics": "metrics.jsonl is missing",
        "9_gone": "its directory is gone",
    }
    assert set(reasons) == {f"sweep/{name}" for name in expected}
    printed = capsys.readouterr().out
    texts = {name: Path("out", name).read_text() for name in FILES}
    for name, reason in expected.items():
        assert reason in reasons[f"sweep/{name}"]
        assert f"not compared: sweep/{name}: " in printed
        assert name in texts["report.html"]
        assert name.replace("_", "\\_") in texts["report.md"]
        [line] = [line for line in texts["runs.csv"].splitlines() if line.startswith(f"sweep/{name},")]
        assert reason in line
        assert not any(character.isdigit() for character in line.partition(reason)[2].lstrip("."))
    assert sum(len(variant["runs"]) for variant in found["groups"][0]["variants"]) == 1


def test_evaluations_of_an_older_version_are_not_guessed_at(make):
    run = make("run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["train_seconds"]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    [excluded] = report(run, make("other"))["excluded"]
    assert excluded["reason"].startswith("metrics.jsonl:1 has no train_seconds")


def test_a_run_whose_later_stage_failed_is_compared_and_the_report_says_so(make, capsys):
    make("sweep/0_run")
    (make.root / "sweep" / "sweep.json").write_text(json.dumps({"runs": [{"directory": "0_run", "exit_code": 1}]}))
    assert written(Path("sweep"))["excluded"] == []
    assert "it ended with exit code 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare"),
        (["nowhere"], "nowhere: no such directory"),
        (["empty"], "empty: neither a run nor a sweep"),
        (["broken"], "broken/sweep.json: not a sweep's record"),
        (["run", "--output", "file"], "file: is a file"),
        (["run", "--output", "file/below"], "file: is a file"),
        (["run", "--no-files", "--output", "out"], "cannot be given together"),
        (["run", "--mlflow", "name"], "cannot be given together"),
        (["run", "--tracking-uri", "sqlite:///x.db"], "belongs to --mlflow"),
        (["run", "--out", "x"], "unrecognized arguments: --out"),
        (["--mlflow", "name", "--tracking-uri", "sqlite:///none.db"], "sqlite:///none.db: no such database"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line_and_nothing_is_written(make, capsys, arguments, message):
    make("run")
    for name in ("empty", "broken"):
        Path(name).mkdir()
    Path("broken/sweep.json").write_text('{"runs": 3}')
    Path("file").write_text("mine")
    before = {path.name for path in Path().iterdir()}
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert {path.name for path in Path().iterdir()} == before
    assert Path("file").read_text() == "mine"


def test_without_a_finished_run_the_reasons_are_told_and_the_exit_code_is_1(make, capsys):
    make("run", train={"status": "interrupted"})
    assert main(["run"]) == 1
    printed = capsys.readouterr()
    assert "not compared: run: interrupted after 6 steps" in printed.out
    assert printed.err.startswith("error: no finished run to compare")
    assert not Path("report").exists()


def test_a_report_that_cannot_be_made_leaves_the_former_one_whole(make, monkeypatch):
    run = make("run")
    written(run)
    former = {name: Path("out", name).read_text() for name in FILES}
    edit(run / "stages" / "train.json", {"samples_per_second": 123.0})
    monkeypatch.setattr("postprocess.compare.files.to_json", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([str(run), "--output", "out"])
    assert {file.name: file.read_text() for file in Path("out").iterdir()} == former


def test_it_runs_from_any_directory_and_needs_no_heavy_package_for_its_help(tmp_path):
    code = (
        "import sys; from postprocess.compare.__main__ import main; sys.argv = ['compare', '--help']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'trainer', 'mlflow', 'matplotlib', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("RUN_OR_SWEEP", "--mlflow", "--tracking-uri", "--output", "--no-files", "examples:", "exit codes:"):
        assert part in done.stdout
