"""Reading an MLflow experiment, on a real database made with MLflow's client."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient

from launcher.run_dir.layout import RunDir
from postprocess.compare.__main__ import main
from tests.postprocess.conftest import edit, variants


@pytest.fixture(scope="module")
def database(sweep, tmp_path_factory) -> str:
    """URI of a database whose experiment holds the sweep's runs and what else may be in one."""
    home = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{home}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("fpft_vs_peft_small", artifact_location=(home / "artifacts").as_uri())
    for directory in sorted(sweep.glob("*_method=*")):
        run = RunDir(directory)
        add(client, experiment, directory.name, (run.config_file, run.stage_file("train"), run.metrics))
    add(client, experiment, "parent", (), tags={"trntune.kind": "sweep"})
    add(client, experiment, "no_result", (RunDir(directory).config_file, RunDir(directory).metrics))
    add(client, experiment, "killed", (), status="KILLED")
    add(client, experiment, "training", (), status=None)
    client.create_experiment("empty", artifact_location=(home / "artifacts").as_uri())
    return uri


def add(client, experiment, name, files, status="FINISHED", tags=None) -> None:
    run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    for file in files:
        client.log_artifact(run_id, str(file))
    if status:
        client.set_terminated(run_id, status)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_an_experiment_gives_the_numbers_of_its_run_directories(database, sweep):
    assert main(["--mlflow", "fpft_vs_peft_small", "--tracking-uri", database]) == 0
    found = json.loads(Path("report/report.json").read_text())
    [group] = found["groups"]
    assert list(variants(group)) == ["method=full", "method=lora"]
    for method in ("full", "lora"):
        runs = {run["seed"]: run["train"] for run in variants(group)[f"method={method}"]["runs"]}
        assert runs == {
            seed: RunDir(next(sweep.glob(f"*={method},seed={seed}"))).stage_result("train") for seed in (0, 1)
        }
    reasons = {each["name"].partition(" ")[0]: each["reason"] for each in found["excluded"]}
    assert reasons == {
        "no_result": "MLflow has no artifact train.json of it",
        "killed": "killed in MLflow",
        "training": "running in MLflow",
    }


def test_the_uri_may_come_from_the_environment(database, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    assert main(["--mlflow", "fpft_vs_peft_small", "--no-files"]) == 0
    assert "FPFT against PEFT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("experiment", "code", "message"),
    [
        ("fpft_vs_peft_smal", 2, "unknown MLflow experiment fpft_vs_peft_smal at sqlite:///"),
        ("empty", 1, "no finished run to compare"),
    ],
)
def test_an_unknown_or_empty_experiment_is_told_in_one_line(database, capsys, experiment, code, message):
    assert main(["--mlflow", experiment, "--tracking-uri", database]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert (code == 1) or "did you mean fpft_vs_peft_small?" in line
    assert not Path("report").exists()


def test_a_missing_database_is_refused_and_not_created(capsys):
    assert main(["--mlflow", "fpft_vs_peft_small"]) == 2
    assert "sqlite:///outputs/mlflow.db: no such database" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_server_that_is_down_is_told_in_one_line_without_its_password(capsys):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    assert main(["--mlflow", "x", "--tracking-uri", f"http://me:secret@127.0.0.1:{port}"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: MLflow at http://***@127.0.0.1")
    assert "secret" not in line


def test_an_interrupted_run_is_excluded_even_where_mlflow_calls_it_finished(sweep, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    run = RunDir(next(sweep.glob("*_method=lora,seed=0")))
    copied = tmp_path / "train.json"
    copied.write_text(run.stage_file("train").read_text())
    edit(copied, {"status": "interrupted"})
    add(client, experiment, "run", (run.config_file, copied, run.metrics))
    assert main(["--mlflow", "e", "--tracking-uri", uri]) == 1
