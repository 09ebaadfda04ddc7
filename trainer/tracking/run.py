"""MLflow as a view of the run: everything is handed to a thread, and nothing that fails there can end the run."""

from __future__ import annotations

import json
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from launcher.config.schema import Config, TrackingConfig
from launcher.config.secrets import redact
from launcher.io import write_json
from launcher.run_dir.layout import RunDir
from trainer.tracking.client import KIND, PARENT, connect, public_uri, set_environment

_NAME = re.compile(r"[\w. :/-]+")
_MAX_PARAM_CHARACTERS = 500
_MAX_PARAMS = 100  # of one request, by MLflow's limit
_CLOSE_SECONDS = 60.0
_SYSTEM_METRICS_SECONDS = 5


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; a mapping with keys that MLflow refuses, as patterns are, is a value."""
    if not isinstance(value, dict) or not all(_NAME.fullmatch(str(key)) for key in value):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat


class Tracker:
    """Logs one run to MLflow from a thread of its own. Made on rank 0 only.

    The first failure is told in one line on stderr; after it nothing more is sent. ``run_id`` is None until the
    thread has made the run, or found the one that ``reference`` names: a run that goes on stays one run in MLflow.
    """

    def __init__(
        self, config: TrackingConfig, run_name: str, parent_run_id: str | None = None, reference: Path | None = None
    ) -> None:
        self.config, self.reference_file = config, reference
        self.run_name = run_name
        self.tags = {KIND: "run", **({PARENT: parent_run_id} if parent_run_id else {})}
        self.run_id: str | None = None
        self.failure: str | None = None if config.enabled else "tracking.enabled=false"
        self._closed = False
        self._resumed = False
        self._client: Any = None
        self._monitor: Any = None
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        if config.enabled:
            set_environment()
            self._calls.put(self._start)

    def begin(self) -> None:
        """Start to send; what was logged before waits. Called where the main thread computes rather than imports: two
        threads that import share one interpreter, and training would begin later by all of MLflow's import."""
        if self.config.enabled and self._thread.ident is None:
            self._thread.start()

    def log_params(self, params: dict[str, Any]) -> None:
        """Log configuration values, nested ones under dotted names."""
        from_config = {key: str(value)[:_MAX_PARAM_CHARACTERS] for key, value in flatten(params).items()}
        # MLflow refuses another value for a parameter; what was changed since is in the run's config.yaml.
        self._send(lambda: None if self._resumed else self._log_batch(params=from_config))

    def log_metrics(self, metrics: Mapping[str, float | int | None], step: int) -> None:
        """Log numbers at a step; None is left out."""
        now = int(time.time() * 1000)
        numbers = {key: float(value) for key, value in metrics.items() if value is not None}
        self._send(lambda: self._log_batch(metrics=numbers, step=step, timestamp=now))

    def log_file(self, file: Path, folder: str | None = None) -> None:
        """Copy ``file`` to the run's artifacts."""
        self._send(lambda: self._client.log_artifact(self.run_id, str(file), folder))

    def log_table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Log rows as a table that MLflow's UI shows."""
        columns = {key: [row.get(key) for row in rows] for key in rows[0]} if rows else {}
        if columns:
            self._send(lambda: self._client.log_table(self.run_id, columns, artifact_file=name))

    def log_config(self, run_dir: RunDir, config: Config) -> None:
        """The composed configuration as parameters and as a file, before training: a killed run has it too."""
        self.log_params({**asdict(config), "tracking": {"experiment": config.tracking.experiment}})
        self.log_file(run_dir.config_file)

    def log_result(self, run_dir: RunDir, result: dict[str, Any]) -> None:
        """The result's numbers and the run's own files."""
        numbers = {key: value for key, value in result.items() if isinstance(value, (int, float))}
        # At the last step, and later than its own line: what MLflow's pages show and compare are these values.
        self.log_metrics(numbers, result["steps"])
        self._send(lambda: self._client.log_dict(self.run_id, result, "train.json"))
        facts = ("status", "definitions", "hardware")
        self.set_tags({**{key: result[key] for key in facts}, "data.sha256": result["data"]["sha256"]})
        for file in (run_dir.metrics, run_dir.samples):
            if file.exists():
                self.log_file(file)

    def set_tags(self, facts: dict[str, Any]) -> None:
        """Tags to filter runs by, under names that begin with trntune."""
        for key, value in flatten(facts, "trntune").items():
            self._set_tag(key, str(value))

    def _set_tag(self, key: str, value: str) -> None:
        self._send(lambda: self._client.set_tag(self.run_id, key, value))

    def reference(self) -> dict[str, str | None]:
        """Where the run is, for reports; ``failure`` says why it may be incomplete."""
        return {"uri": public_uri(self.config.uri), "run_id": self.run_id, "failure": self.failure}

    def close(self, status: str) -> None:
        """Send what is left, end the run as FINISHED, FAILED or KILLED, and wait for it, a minute at most."""
        if self._closed or not self.config.enabled:
            return
        self._closed = True
        self.begin()
        self._calls.put(lambda: self._finish(status))
        self._calls.put(None)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._fail(f"no answer within {_CLOSE_SECONDS:.0f} s")

    def _send(self, call: Callable[[], None]) -> None:
        """Queue a call for the thread, unless nothing is sent any more."""
        if self.failure is None:
            self._calls.put(call)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self.failure is not None:
                continue
            try:
                call()
            except Exception as error:  # whatever a server or a database does must not end the training
                self._fail(f"{type(error).__name__}: {error}")
        if self._monitor is not None:
            self._monitor.finish()

    def _fail(self, reason: str) -> None:
        self.failure = redact(" ".join(reason.split()))[:200]
        print(
            f"warning: MLflow at {public_uri(self.config.uri)} failed ({self.failure}); the run goes on, "
            "and metrics.jsonl in the run directory is complete",
            file=sys.stderr,
            flush=True,
        )

    def _start(self) -> None:
        # Importing MLflow takes seconds and creating a database takes more: both happen beside the first evaluation.
        self._client, experiment = connect(self.config)
        # The duration that MLflow shows is then the stage's, not the time since a database was ready.
        begun = int(psutil.Process().create_time() * 1000)
        self.run_id = self._taken_up() or self._created(experiment, begun)
        if self.config.system_metrics:
            self._start_monitor()

    def _created(self, experiment: str, begun: int) -> str:
        run = self._client.create_run(experiment, start_time=begun, run_name=self.run_name, tags=self.tags)
        if self.reference_file is not None:
            write_json(self.reference_file, {"uri": public_uri(self.config.uri), "run_id": run.info.run_id})
        return str(run.info.run_id)

    def _taken_up(self) -> str | None:
        """The run of an earlier attempt, running again; None when there is none at this address."""
        if self.reference_file is None or not self.reference_file.exists():
            return None
        known = json.loads(self.reference_file.read_text(encoding="utf-8"))
        if known["uri"] != public_uri(self.config.uri):
            return None
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(known["run_id"], status="RUNNING")
        except MlflowException:  # it was deleted there
            return None
        self._resumed = True
        return str(known["run_id"])

    def _start_monitor(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            self.run_id,
            sampling_interval=_SYSTEM_METRICS_SECONDS,
            resume_logging=self._resumed,
            tracking_uri=self.config.uri,
        )
        self._monitor.start()

    def _log_batch(
        self,
        params: dict[str, str] | None = None,
        metrics: dict[str, float] | None = None,
        step: int = 0,
        timestamp: int = 0,
    ) -> None:
        from mlflow.entities import Metric, Param

        numbers = [Metric(key, value, timestamp, step) for key, value in (metrics or {}).items()]
        texts = [Param(key, value) for key, value in (params or {}).items()]
        self._client.log_batch(self.run_id, metrics=numbers)
        for start in range(0, len(texts), _MAX_PARAMS):
            self._client.log_batch(self.run_id, params=texts[start : start + _MAX_PARAMS])

    def _finish(self, status: str) -> None:
        try:
            if self._monitor is not None:
                _finish_monitor(self._monitor)
                self._monitor = None
        finally:
            self._client.set_terminated(self.run_id, status)


def _finish_monitor(monitor: Any) -> None:
    """Stop the monitor of system metrics and send what it has since its last full interval.

    MLflow's own ``finish`` throws that away, so that a run shorter than an interval would show no such metric at all.
    """
    monitor.finish()
    monitor.collect_metrics()
    monitor.publish_metrics(monitor.aggregate_metrics())
    monitor.mlflow_logger.flush()
