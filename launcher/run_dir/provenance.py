"""What is written down about a run before it starts: its configuration, and who ran what with which versions."""

from __future__ import annotations

import datetime
import functools
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from omegaconf import DictConfig, OmegaConf

from launcher.config.schema import Config
from launcher.io import write_atomic, write_json
from launcher.paths import ROOT
from launcher.run_dir.layout import RunDir

PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "mlflow", "hydra-core", "omegaconf", "numpy", "safetensors", "gguf",
    "bitsandbytes",
)  # fmt: skip


LIBRARIES = ("torch", "transformers", "peft", "accelerate")
"""What computes a step: with another version of one of them its time, memory and last digits may be others."""


def installed(package: str) -> str | None:
    """The version of an installed package, from its metadata: importing it could take seconds."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def torch_is_built_for_cuda() -> bool:
    """Whether this Python's torch is one for CUDA, as pip takes it by default: what it requires says so."""
    try:
        return any(line.startswith(("nvidia-", "cuda-")) for line in metadata.requires("torch") or ())
    except metadata.PackageNotFoundError:
        return False


def git(*arguments: str) -> str | None:
    """What git says about the project's own checkout; None when there is none."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def software() -> dict[str, Any]:
    """Versions of everything that a result depends on; the same for all runs of one command."""
    commit = git("rev-parse", "HEAD") if (ROOT / ".git").exists() else None
    return {
        "trntune": installed("trntune"),
        "git_commit": commit,
        "git_dirty": bool(git("status", "--porcelain")) if commit else None,
        "hostname": socket.gethostname(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "packages": installed_packages(),
    }


def installed_packages(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Names and versions, by default of what a result depends on."""
    return {package: installed(package) for package in packages}


def write_records(
    run_dir: RunDir, config: Config, hydra: DictConfig, overrides: Sequence[str], sweep: Mapping[str, Any] | None = None
) -> None:
    """Write .hydra/ and job.json into a new run directory; ``sweep`` says which sweep it belongs to.

    The configuration first: with it the directory is this run's, and a killed launcher's run can be started again.
    """
    # Typed already: OmegaConf.structured would check it once more, which takes longer than the writing.
    write_atomic(run_dir.config_file, OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    write_atomic(run_dir.hydra / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(overrides))))
    write_atomic(run_dir.hydra / "hydra.yaml", OmegaConf.to_yaml(hydra))
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_json(run_dir.job, {**software(), "overrides": list(overrides), "started_at": started, "sweep": sweep})
