#!/usr/bin/env bash
# MLflow 3.17.2 (SQLAlchemy 2.1, Alembic 1.20): clients in several processes that open one new SQLite database at the same
# moment break each other's work.
#
# `MlflowClient("sqlite:///mlflow.db")` makes the tables when the file has none, and no lock guards that: each process that
# finds the file empty begins to run the migrations. Seen also with `mlflow ui` beside the first run of a directory: its
# server never came up. A lock around the first client, or making the database before the others start, avoids it.
#
# Seen, in the first try (4 of 4 clients failed):
#   OperationalError: (sqlite3.OperationalError) duplicate column name: step
#   OperationalError: (sqlite3.OperationalError) table _alembic_tmp_metrics already exists
#   CommandError: Online migration expected to match one row when updating '90e64c465722' to '181f10493468' in 'alembic_version'
# Exit code 0: still so in one of five tries. 1: in none of them, or another version was installed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mlflow==3.17.2
cat >"$work/client.py" <<'PYTHON'
import os
import sys
import time

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import logging

logging.disable(logging.INFO)
from mlflow import MlflowClient

# All begin when the last has imported the library.
open(f"ready-{os.getpid()}", "w").close()
while sum(name.startswith("ready-") for name in os.listdir()) < int(sys.argv[1]):
    time.sleep(0.01)
try:
    MlflowClient("sqlite:///mlflow.db").search_experiments()
except Exception as error:
    print(f"{type(error).__name__}: {str(error).splitlines()[0][:100]}")
    sys.exit(1)
print("opened it")
PYTHON
for attempt in 1 2 3 4 5; do
    mkdir "$work/$attempt"
    cd "$work/$attempt"
    processes=()
    for number in 1 2 3 4; do
        "$work/venv/bin/python" ../client.py 4 >"out-$number" 2>/dev/null &
        processes+=($!)
    done
    failed=0
    for process in "${processes[@]}"; do
        wait "$process" || failed=$((failed + 1))
    done
    echo "try $attempt: $failed of 4 clients failed"
    cat out-*
    if [ "$failed" -gt 0 ]; then
        exit 0
    fi
done
echo "changed: no client failed in five tries"
exit 1
