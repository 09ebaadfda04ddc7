"""What a run leaves on disk: names of its files, and how they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from launcher.config.schema import Config


@dataclass(frozen=True)
class RunDir:
    """The directory of one run. It is complete without MLflow."""

    path: Path

    @property
    def hydra(self) -> Path:
        return self.path / ".hydra"

    @property
    def config_file(self) -> Path:
        """The composed configuration with every interpolation resolved."""
        return self.hydra / "config.yaml"

    @property
    def job(self) -> Path:
        """Who ran what: versions, host, overrides."""
        return self.path / "job.json"

    @property
    def plan(self) -> Path:
        """What the configuration alone said about parameters and memory before the start."""
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tracking(self) -> Path:
        """Which run of MLflow is this one's."""
        return self.path / "tracking.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def sharded(self) -> Path:
        """What was trained in parts, as the ranks of a split model wrote them."""
        return self.path / "sharded"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def merged(self) -> Path:
        return self.path / "merged"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def attempts(self) -> Path:
        """Every start of the training stage, and how it ended (launcher.run_dir.attempts)."""
        return self.path / "attempts.jsonl"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def stage_file(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def stage_result(self, stage: str) -> dict[str, Any] | None:
        """What ``stage`` returned, or None when it has not finished."""
        try:
            result: dict[str, Any] = json.loads(self.stage_file(stage).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return result

    def read_job(self) -> dict[str, Any]:
        """Who ran what: job.json."""
        job: dict[str, Any] = json.loads(self.job.read_text(encoding="utf-8"))
        return job

    def read_config(self) -> dict[str, Any]:
        """The configuration as it is written, whichever version of the schema wrote it."""
        config: dict[str, Any] = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        return config

    def load_config(self) -> Config:
        """The typed configuration of this run."""
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(self.config_file)))
        assert isinstance(config, Config)
        return config
