"""Reaching MLflow: what a run and the parent run of a sweep do the same way."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock

from launcher.config.schema import TrackingConfig
from launcher.config.secrets import without_credentials
from launcher.run_dir.create import make_private

# Tags of our own: what a run is in a sweep, and what a list of runs is filtered by.
KIND = "trntune.kind"
PARENT = "mlflow.parentRunId"  # MLflow's own, which its pages nest runs by

# MLflow would retry an unreachable server for minutes; and neither it nor the Hub reports use from here.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def set_environment() -> None:
    """MLflow's settings, where the user has none; before it is imported, and in the main thread."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def public_uri(uri: str) -> str:
    """``uri`` without a user name, a password and whatever in its query is a credential."""
    parts = urlsplit(uri)
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri
    return without_credentials(plain)


def sqlite_file(uri: str) -> Path | None:
    """The database file of an sqlite URI, else None."""
    prefix = "sqlite:///"
    return Path(uri[len(prefix) :]) if uri.startswith(prefix) else None


def connect(config: TrackingConfig) -> tuple[Any, str]:
    """A client of the store, and the id of the experiment. Importing MLflow takes seconds, making a database more."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow
    from mlflow import MlflowClient

    # The plugin for ARNs reads the global address, not the client's.
    mlflow.set_tracking_uri(config.uri)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    database = sqlite_file(config.uri)
    artifacts = None if database is None else database.absolute().parent / "mlartifacts"
    if database is not None and artifacts is not None:
        # They hold copies of what run directories do, beside them: as these they are their owner's alone.
        make_private(artifacts)
        database.touch(mode=0o600)
    # Two processes that make the tables of one database at the same time break each other's work.
    with nullcontext() if database is None else FileLock(f"{database}.lock", mode=0o600):
        client = MlflowClient(tracking_uri=config.uri)
        return client, _experiment(client, config.experiment, artifacts)


def _experiment(client: Any, name: str, artifacts: Path | None) -> str:
    """The experiment's id; it is created when missing, and another run may do so at the same moment."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts.as_uri() if artifacts else None))
        except Exception:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)
