"""A sweep in MLflow: one parent run, its runs nested under it, with the numbers of the run directories."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from launcher.paths import ROOT
from tests.conftest import TINY, launch
from tests.test_runs_in_mlflow import free_port

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished sweep over both methods; its database lies beside it."""
    cwd = tmp_path_factory.mktemp("sweep")
    arguments = ("-m", *TINY, "tracking.system_metrics=false", "method=full,lora")
    process = launch(cwd, *arguments, f"hydra.sweep.dir={cwd}/both")
    assert process.returncode == 0, process.stderr
    assert "warning" not in process.stderr
    return cwd / "both"


@pytest.fixture(scope="module")
def client(sweep: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{sweep.parent}/outputs/mlflow.db")


def runs_of(client: MlflowClient, kind: str):
    [experiment] = [e for e in client.search_experiments() if e.name == "trntune"]
    return client.search_runs([experiment.experiment_id], f"tags.`trntune.kind` = '{kind}'")


def test_the_runs_are_nested_under_one_parent_with_what_was_swept(sweep, client):
    [parent] = runs_of(client, "sweep")
    assert parent.info.run_name == "both"
    assert parent.info.status == "FINISHED"
    assert parent.data.params["method"] == "full,lora"
    children = runs_of(client, "run")
    assert sorted(child.info.run_name for child in children) == ["0_method=full", "1_method=lora"]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert json.loads((sweep / "sweep.json").read_text())["mlflow"]["run_id"] == parent.info.run_id


def test_the_parent_holds_the_report(sweep, client, tmp_path):
    [parent] = runs_of(client, "sweep")
    names = {item.path for item in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/report.html", "report/report.md", "report/runs.csv"} <= names
    copy = Path(client.download_artifacts(parent.info.run_id, "report/report.html", str(tmp_path)))
    assert copy.read_text() == (sweep / "report" / "report.html").read_text()
    assert "sweep.json" in {item.path for item in client.list_artifacts(parent.info.run_id)}


def test_mlflow_shows_the_numbers_of_the_run_directory(sweep, client, tmp_path):
    for child in runs_of(client, "run"):
        directory = sweep / child.info.run_name
        result = json.loads((directory / "stages" / "train.json").read_text())
        numbers = {key: value for key, value in result.items() if isinstance(value, (int, float))}
        assert {"samples_per_second", "trainable_params", "wall_seconds"} <= set(numbers)
        for key, value in numbers.items():
            assert math.isclose(child.data.metrics[key], value), key
        logged = Path(client.download_artifacts(child.info.run_id, "train.json", str(tmp_path)))
        assert json.loads(logged.read_text()) == {key: value for key, value in result.items() if key != "mlflow"}


def test_every_line_of_metrics_jsonl_is_in_mlflow(sweep, client):
    for child in runs_of(client, "run"):
        lines = (sweep / child.info.run_name / "metrics.jsonl").read_text().splitlines()
        for record in map(json.loads, lines):
            for key in set(record) - {"event", "step", "sample_ids"}:  # which rows: no number over time
                history = client.get_metric_history(child.info.run_id, key)
                assert record[key] in [entry.value for entry in history if entry.step == record["step"]], (key, record)


@pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs Debian's chromium and chromium-driver")
def test_mlflows_own_page_compares_the_runs(sweep, client):
    pages = make_screenshot()
    children = sorted(runs_of(client, "run"), key=lambda run: run.info.run_name)
    with (
        pages.mlflow_ui(f"sqlite:///{sweep.parent}/outputs/mlflow.db") as address,
        pages.chromium(1400, 1100) as page,
    ):
        ids = [child.info.run_id for child in children]
        page.get(pages.compare_address(address, children[0].info.experiment_id, ids))
        pages.make_room(page)
        pages.show_comparison(page)
        for metric in ("samples_per_second", "trainable_params", "wall_seconds"):
            shown = [float(value) for value in pages.show_metric(page, metric)]
            assert shown == pytest.approx([child.data.metrics[metric] for child in children], rel=1e-3), metric


def make_screenshot():
    """docs/make_screenshot.py, which is no package."""
    spec = importlib.util.spec_from_file_location("make_screenshot", ROOT / "docs" / "make_screenshot.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_failed_run_fails_the_parent(tmp_path):
    arguments = ("-m", *TINY, "tracking.system_metrics=false", "method=full", "training.max_grad_norm=0")
    process = launch(tmp_path, *arguments, "training.learning_rate=1e30,0.001", f"hydra.sweep.dir={tmp_path}/s")
    assert process.returncode == 1
    [parent] = runs_of(MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/outputs/mlflow.db"), "sweep")
    assert parent.info.status == "FAILED"
    assert parent.data.params["training.learning_rate"] == "1e+30,0.001"


def test_runs_of_another_experiment_are_not_nested(tmp_path):
    arguments = ("-m", *TINY, "tracking.system_metrics=false", "training.max_steps=3", "training.eval_every=null")
    process = launch(tmp_path, *arguments, "tracking.experiment=a,b", f"hydra.sweep.dir={tmp_path}/s")
    assert process.returncode == 0, process.stderr
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/outputs/mlflow.db")
    nested = {}
    for experiment in client.search_experiments(filter_string="name != 'Default'"):
        for run in client.search_runs([experiment.experiment_id], "tags.`trntune.kind` = 'run'"):
            nested[experiment.name] = "mlflow.parentRunId" in run.data.tags
    assert nested == {"a": True, "b": False}


def test_a_sweep_goes_on_without_a_server(tmp_path):
    arguments = ("-m", *TINY, "training.max_steps=3", "training.eval_every=null", "seed=0,1")
    process = launch(
        tmp_path, *arguments, f"tracking.uri=http://127.0.0.1:{free_port()}", f"hydra.sweep.dir={tmp_path}/s"
    )
    assert process.returncode == 0, process.stderr
    warnings = [line for line in process.stderr.splitlines() if line.startswith("warning: MLflow")]
    assert [line for line in warnings if "no parent run" in line] == warnings[:1]
    assert len(warnings) == 3
    assert len(list(tmp_path.glob("s/*/stages/train.json"))) == 2
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["mlflow"] is None
