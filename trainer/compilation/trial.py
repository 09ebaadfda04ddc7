"""The trial run that graphs are taken from: the same configuration for a few steps, in a directory of its own."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from launcher.config.schema import Config
from launcher.io import write_atomic, write_json
from launcher.run_dir.layout import RunDir


def tracing() -> bool:
    """True in a trial run: graphs are collected and nothing is executed, so that every number is meaningless.

    Set by neuron_parallel_compile; optimum-neuron asks the same (optimum/neuron/utils/misc.py: is_precompilation).
    """
    return os.environ.get("NEURON_EXTRACT_GRAPHS_ONLY") == "1"


def trial_config(config: Config) -> Config:
    """``config`` with what changes no graph left out: steps, checkpoints, tracking."""
    assert config.accelerator.neuron is not None
    trial = copy.deepcopy(config)
    steps = config.accelerator.neuron.trial_steps
    trial.training.max_steps = min(steps, config.training.max_steps or steps)
    trial.training.save_every = None
    trial.tracking.enabled = False
    trial.stages = ["train"]
    return trial


def make(config: Config, run_dir: RunDir, directory: Path) -> RunDir:
    """A run directory at ``directory`` that stage train can start in. What an earlier attempt left there is removed."""
    shutil.rmtree(directory, ignore_errors=True)
    trial = RunDir(directory)
    write_json(trial.job, {**run_dir.read_job(), "sweep": None})
    write_json(trial.stage_file("fetch"), run_dir.stage_result("fetch"))
    write_atomic(trial.config_file, OmegaConf.to_yaml(OmegaConf.structured(trial_config(config))))
    return trial
