#!/usr/bin/env bash
# MLflow 3.17.2: system metrics of the time since the last full sampling interval are thrown away at the end of a run.
#
# SystemMetricsMonitor samples, waits for the interval (10 s unless it is set), and only then hands on what it sampled.
# When the run ends during that wait, the loop returns before it hands anything on, and finish() sends only what was handed
# on earlier. A run that is shorter than one interval has no system metric at all although a sample was taken at its
# start, and `mlflow.start_run(log_system_metrics=True)` says nothing about it; every longer run lacks its last interval.
# After finish(), collect_metrics(), publish_metrics(aggregate_metrics()) and mlflow_logger.flush() of the monitor send it.
#
# Seen:
#   run of 2 s, interval 10 s: 0 system metrics
#   run of 2 s, interval 10 s, sent after finish(): 8 system metrics
#   run of 4 s, interval 1 s: 8 system metrics
# Exit code 0: still so. 1: a short run has system metrics, or the longer ones have none, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mlflow==3.17.2 psutil
cat >"$work/runs.py" <<'PYTHON'
import logging
import os
import sys
import time

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
logging.disable(logging.WARNING)
from mlflow import MlflowClient
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

URI = "sqlite:///mlflow.db"
client = MlflowClient(URI)
experiment = client.create_experiment("short")


def found(seconds: float, interval: float, send: bool) -> int:
    run = client.create_run(experiment).info.run_id
    monitor = SystemMetricsMonitor(run, sampling_interval=interval, tracking_uri=URI)
    monitor.start()
    time.sleep(seconds)
    monitor.finish()
    if send:
        monitor.collect_metrics()
        monitor.publish_metrics(monitor.aggregate_metrics())
        monitor.mlflow_logger.flush()
    client.set_terminated(run)
    return sum(key.startswith("system/") for key in client.get_run(run).data.metrics)


short, sent, longer = found(2, 10, False), found(2, 10, True), found(4, 1, False)
print(f"run of 2 s, interval 10 s: {short} system metrics")
print(f"run of 2 s, interval 10 s, sent after finish(): {sent} system metrics")
print(f"run of 4 s, interval 1 s: {longer} system metrics")
sys.exit(0 if short == 0 and sent and longer else 1)
PYTHON
cd "$work"
venv/bin/python runs.py 2>/dev/null
