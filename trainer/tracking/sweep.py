"""The parent run of a sweep in MLflow, which its runs are nested under.

`python -m trainer.tracking.sweep REQUEST` with a JSON object: action start or finish. The launcher starts it as a
process of its own: MLflow's import would stay in its memory for the whole sweep.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.config.schema import TrackingConfig
from launcher.config.secrets import redact
from trainer.tracking.client import KIND, connect, public_uri, set_environment


def start(uri: str, experiment: str, name: str, params: dict[str, str]) -> dict[str, str]:
    """Begin the parent run. ``params`` is what is swept, key -> values."""
    client, experiment_id = connect(TrackingConfig(uri=uri, experiment=experiment))
    run = client.create_run(experiment_id, run_name=name, tags={KIND: "sweep"})
    for key, value in params.items():
        client.log_param(run.info.run_id, key, value)
    return {"run_id": run.info.run_id}


def finish(uri: str, experiment: str, run_id: str, status: str, directory: str) -> dict[str, str]:
    """Log sweep.json and the report, and end the parent run as FINISHED, FAILED or KILLED."""
    client, _ = connect(TrackingConfig(uri=uri, experiment=experiment))
    sweep = Path(directory)
    try:
        if (sweep / "sweep.json").is_file():
            client.log_artifact(run_id, str(sweep / "sweep.json"))
        if (sweep / "report").is_dir():
            client.log_artifacts(run_id, str(sweep / "report"), "report")
    finally:
        client.set_terminated(run_id, status)
    return {"run_id": run_id}


ACTIONS: dict[str, Callable[..., dict[str, str]]] = {"start": start, "finish": finish}


def main(arguments: list[str]) -> int:
    """Process entry. Whatever the store does must not cost the sweep: a failure is one line, and an empty answer."""
    request: dict[str, Any] = json.loads(arguments[0])
    action = request.pop("action")
    set_environment()
    try:
        answer = ACTIONS[action](**request)
    except Exception as error:
        reason = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        what = "the sweep has no parent run there" if action == "start" else "its parent run there is not complete"
        print(f"warning: MLflow at {public_uri(request['uri'])} failed ({reason}); {what}", file=sys.stderr)
        answer = {}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
