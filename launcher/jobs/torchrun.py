"""The command lines of stages, by themselves or in processes of torchrun, and which processes torchrun has started."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from launcher.jobs.helper_process import python_module

TORCHRUN = "torch.distributed.run"


def stage_command(stage: str, run_dir: Path, processes: int, elastic: bool = False) -> list[str]:
    """The command line of one stage. torchrun starts the processes of a training stage, a single one if ``elastic``."""
    module = python_module("launcher.jobs.run_stage", stage, str(run_dir))
    return torchrun(module, processes, ["--standalone"]) if processes > 1 or elastic else module


def torchrun(command: list[str], processes: int, meeting: list[str]) -> list[str]:
    """``command`` in that many processes of this machine; ``meeting`` says where they find those of others."""
    options = ["--no-python", f"--nproc-per-node={processes}", *meeting]
    return [sys.executable, "-m", TORCHRUN, *options, *command]


def workers(pid: int, replicas: int) -> list[int]:
    """Processes that train: the child itself, or torchrun's children once all of them run. Never torchrun, which
    would kill its workers in the middle of a step."""
    import psutil

    found = []
    with suppress(psutil.Error):
        if replicas == 1 and TORCHRUN not in psutil.Process(pid).cmdline():
            return [pid]
        for child in psutil.Process(pid).children():
            with suppress(psutil.Error):
                if "launcher.jobs.run_stage" in child.cmdline():
                    found.append(child.pid)
    return found if len(found) >= replicas else []


def is_rank_zero() -> bool:
    """True in the one process that writes: torchrun numbers its processes in RANK."""
    return int(os.environ.get("RANK", "0")) == 0
