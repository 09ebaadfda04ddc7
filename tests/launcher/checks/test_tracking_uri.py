"""Addresses of MLflow: which can be one, and which hold a password."""

from __future__ import annotations

import importlib.util

import pytest

from launcher.checks.validate import problems
from tests.launcher.conftest import single

ARN = "arn:aws:sagemaker:us-west-2:123456789012:mlflow-tracking-server/tuning-1"


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///x.db", "http://h:5000", "https://h", "file:/tmp/x", "databricks", "./mlruns",
        "postgresql://h/runs", "postgresql+psycopg://h:5432/runs", "mysql://h/runs", "mysql+pymysql://h/runs",
        ARN, ARN.replace("aws:", "aws-us-gov:", 1), ARN.replace("mlflow-tracking-server/tuning-1", "mlflow-app/app-2X"),
    ],
)  # fmt: skip
def test_addresses_that_mlflow_knows(uri, cwd):
    assert problems(single(f"tracking.uri='{uri}'").config) == []


BAD_ARNS = [
    (ARN.replace(":us-west-2", ""), "5 parts"),
    (ARN.replace("aws:", "azure:", 1), "'azure' is no partition"),
    (ARN.replace("sagemaker", "s3"), "'s3' is not the service sagemaker"),
    (ARN.replace("us-west-2", "west"), "'west' is no region"),
    (ARN.replace("123456789012", "12345"), "'12345' is no account number, which has 12 digits"),
    (ARN.replace("mlflow-tracking-server", "endpoint"), "'endpoint' is neither mlflow-tracking-server nor mlflow-app"),
    (ARN.replace("tuning-1", ""), "'' is no name of a mlflow-tracking-server"),
    (ARN.replace("aws:", "aws-cn:", 1), "set SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT"),
]


@pytest.mark.parametrize(("arn", "piece"), BAD_ARNS, ids=lambda value: value[-60:])
def test_a_malformed_arn_is_refused_by_its_first_wrong_part(arn, piece, cwd):
    [problem] = problems(single("tracking=sagemaker", f"tracking.uri='{arn}'").config)
    assert problem.key == "tracking.uri"
    assert piece in str(problem)


def test_a_partition_that_the_plugin_does_not_know_needs_an_endpoint(cwd, monkeypatch):
    monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", "https://mlflow.example")
    assert problems(single(f"tracking.uri='{ARN.replace('aws:', 'aws-cn:', 1)}'").config) == []


def test_sagemaker_without_its_plugin_is_refused_with_what_installs_it(cwd, monkeypatch):
    found = importlib.util.find_spec
    hidden = {"sagemaker_mlflow"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else found(name, *rest))
    [problem] = problems(single(f"tracking.uri='{ARN}'").config)
    assert str(problem).endswith('pip install "trntune[sagemaker]"')


def test_sagemakers_address_comes_from_the_environment_too(cwd, monkeypatch):
    assert "MLFLOW_TRACKING_ARN" in str(problems(single("tracking=sagemaker").config)[0])
    monkeypatch.setenv("MLFLOW_TRACKING_ARN", ARN)
    config = single("tracking=sagemaker").config
    assert config.tracking.uri == ARN
    assert problems(config) == []


@pytest.mark.parametrize(
    ("uri", "where"),
    [
        ("postgresql://anna:geheim@h/runs", "~/.pgpass"),
        ("postgresql://h/runs?user=anna&password=geheim", "PGPASSWORD"),
        ("mysql+pymysql://anna:geheim@h/runs", "~/.my.cnf"),
    ],
)
def test_a_databases_password_is_refused_with_where_it_belongs(uri, where, cwd):
    [problem] = problems(single(f"tracking.uri='{uri}'").config)
    assert where in str(problem)
    assert "geheim" not in str(problem)
