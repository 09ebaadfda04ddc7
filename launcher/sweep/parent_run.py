"""The MLflow run that a sweep's runs are nested under."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.schema import Config, TrackingConfig
from launcher.jobs.helper_process import run_module

MODULE = "trainer.tracking.sweep"


@dataclass(frozen=True)
class ParentRun:
    """A parent run: where it is, and its id."""

    uri: str
    experiment: str
    run_id: str

    def holds(self, tracking: TrackingConfig) -> bool:
        """True for a run that goes into the same experiment: MLflow nests no others."""
        return tracking.enabled and (tracking.uri, tracking.experiment) == (self.uri, self.experiment)

    def to_json(self) -> dict[str, str]:
        return {"uri": self.uri, "experiment": self.experiment, "run_id": self.run_id}


def swept_values(swept: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Key -> its values in the sweep, in their order: {"method": "lora,full"}."""
    values: dict[str, dict[str, None]] = {}
    for lines in swept:
        for line in lines:
            key, _, value = line.partition("=")
            values.setdefault(key, {})[value] = None
    return {key: ",".join(found) for key, found in values.items()}


def stored(directory: Path) -> ParentRun | None:
    """The parent of a sweep that was started before, or None."""
    file = directory / "sweep.json"
    if not file.is_file():
        return None
    place = json.loads(file.read_text(encoding="utf-8")).get("mlflow")
    return ParentRun(**place) if place else None


def start(configs: list[Config], swept: list[tuple[str, ...]], directory: Path) -> ParentRun | None:
    """Begin the parent in the store of the first run that is tracked; None when there is none or it can't be."""
    tracking = next((config.tracking for config in configs if config.tracking.enabled), None)
    if tracking is None:
        return None
    params = {**swept_values(swept), "runs": str(len(configs)), "directory": str(directory)}
    place = {"uri": tracking.uri, "experiment": tracking.experiment}
    request = {"action": "start", **place, "name": directory.name, "params": params}
    answer = _ask(request, "the sweep has no parent run in MLflow")
    return ParentRun(tracking.uri, tracking.experiment, answer["run_id"]) if answer else None


def finish(parent: ParentRun, status: str, directory: Path) -> None:
    """End the parent with the sweep's report."""
    request = {"action": "finish", **parent.to_json(), "status": status, "directory": str(directory)}
    _ask(request, "the sweep's parent run in MLflow is not complete")


def _ask(request: dict[str, Any], missing: str) -> dict[str, Any] | None:
    # Its warnings are the user's to see, as they come.
    return run_module(MODULE, json.dumps(request), missing, stderr=None) or None
