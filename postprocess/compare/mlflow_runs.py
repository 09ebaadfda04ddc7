"""Reading runs from an MLflow experiment: the artifacts that trainer.tracking.run logs."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config.secrets import redact
from launcher.errors import TrntuneError, UsageError, nearest
from postprocess.compare.runs import FILES, Collection, Excluded, Run, parse_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///outputs/mlflow.db"
_SWEEP_TAG = ("trntune.kind", "sweep")
# A server that is down is told at once; MLflow would try for minutes.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def tracking_uri(given: str | None) -> str:
    """The server or database to ask: as given, else MLFLOW_TRACKING_URI, else the file that runs write by default."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def collect_experiment(experiment: str, uri: str) -> Collection:
    """The runs of an experiment. Raises UsageError for an unknown one, TrntuneError when MLflow does not answer."""
    _check_file(uri)
    with _told_in_one_line(uri):
        client = _client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise UsageError(_unknown(experiment, client, uri))
        collection = Collection()
        with tempfile.TemporaryDirectory() as scratch:
            for run in _runs(client, found.experiment_id):
                if run.data.tags.get(_SWEEP_TAG[0]) != _SWEEP_TAG[1]:
                    collection.add(_read(client, run, Path(scratch)))
        return collection


def _check_file(uri: str) -> None:
    """MLflow would create the database that it was asked to read."""
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not Path(uri[len(prefix) :]).is_file():
        raise UsageError(f"{uri}: no such database; give --tracking-uri with the URI that the runs were tracked at")


@contextmanager
def _told_in_one_line(uri: str) -> Iterator[None]:
    try:
        yield
    except TrntuneError:
        raise
    except Exception as error:  # whatever a server, a database or an artifact store answers
        reason = " ".join(str(error).split())[:300]
        raise TrntuneError(f"MLflow at {redact(uri)} cannot be read: {type(error).__name__}: {reason}") from error


def _client(uri: str) -> MlflowClient:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # importing it sets its own level
    return MlflowClient(tracking_uri=uri)


def _unknown(experiment: str, client: MlflowClient, uri: str) -> str:
    names = [str(found.name) for found in client.search_experiments()]
    near = nearest(experiment, names)
    advice = f"did you mean {near}?" if near else f"there are: {', '.join(sorted(names)) or 'none'}"
    return f"unknown MLflow experiment {experiment} at {redact(uri)}; {advice}"


def _runs(client: MlflowClient, experiment_id: str) -> Iterator[Any]:
    """All runs, the oldest first."""
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], order_by=["attributes.start_time ASC"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _read(client: MlflowClient, run: Any, scratch: Path) -> Run | Excluded:
    run_id = str(run.info.run_id)
    name = f"{run.info.run_name or 'run'} ({run_id[:8]})"
    if run.info.status != "FINISHED":
        return Excluded(name, f"{str(run.info.status).lower()} in MLflow")
    there = {file.path for file in client.list_artifacts(run_id)}
    missing = [file for file in FILES if file not in there]
    if missing:
        return Excluded(name, f"MLflow has no artifact {', '.join(missing)} of it")
    folder = scratch / run_id
    folder.mkdir()
    texts = {file: Path(client.download_artifacts(run_id, file, str(folder))).read_text("utf-8") for file in FILES}
    return parse_run(name, texts)
