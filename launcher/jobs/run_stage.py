"""One stage of a run, as a process: `python -m launcher.jobs.run_stage train RUN_DIR`, alone or under torchrun."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

from launcher.config.schema import Config
from launcher.config.secrets import redact
from launcher.errors import FAILED, INTERRUPTED, SUSPENDED, SuspendedError, TrntuneError, UsageError, disk_fault
from launcher.io import write_json
from launcher.jobs.parent_death import die_with_parent, launcher_pids, parent_is_gone
from launcher.jobs.torchrun import is_rank_zero
from launcher.jobs.variables import ON_ACCELERATOR, TORCHRUN_OPTIONS
from launcher.run_dir.layout import RunDir
from launcher.run_dir.lock import STALE_SECONDS, RunLock

# A stage's name, and the module whose run(config, run_dir) is the stage. Named, not imported: the launcher is
# free of torch, and only the stage's own process pays for what it uses.
STAGES = {
    "fetch": "trainer.fetch.stage",
    "compile": "trainer.compilation.stage",
    "train": "trainer.train",
    "consolidate": "postprocess.consolidate.stage",
    "merge": "postprocess.merge.stage",
    "generate": "postprocess.generate.stage",
}


PREPARING = ("fetch", "compile")
"""Stages whose result is the same every time: what follows one that ran need not run again for it."""


class StageModule(Protocol):
    """What a module in STAGES offers."""

    def run(self, config: Config, run_dir: RunDir) -> dict[str, Any]:
        """Do the stage's work and return what later stages and reports need, as JSON values."""
        ...


class AfterTraining(StageModule, Protocol):
    """What the modules of the stages after training offer besides."""

    def rehearse(self, config: Config, run_dir: RunDir, saved: Path | None) -> None:
        """Before training: raise TrntuneError where the stage could not do its work after it. ``saved`` has what
        training will save, as it begins; None where the ranks of a split model save in parts."""
        ...


def check_stray_rank() -> None:
    """Raise UsageError for the number of a process outside torchrun: any but the first would write nothing and fail
    for want of it, and all would wait for the others.

    Stage compile runs once on each node, which has a number; it starts the processes itself.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or TORCHRUN_OPTIONS in os.environ:
        return
    for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1")):
        value = os.environ.get(name, alone)
        if value != alone:
            raise UsageError(
                f"{name}={value} is set, but torchrun did not start this process: another tool has left it; "
                f"unset {name}, or start the run with launch.py"
            )


def forget(name: str, run_dir: RunDir) -> None:
    """Remove the results of a stage that is done anew, and of those after it, which were made from it: until they have
    run again, whenever that is, they have not finished."""
    stages = list(STAGES)
    for later in stages[stages.index(name) :]:
        run_dir.stage_file(later).unlink(missing_ok=True)


def patience() -> float:
    """Seconds that a stage waits for its directory. A job of Slurm may begin while the command that submitted it still
    submits the next ones, or beside one on a node that is lost, which seems alive until it was silent long enough."""
    return 2 * STALE_SECONDS if "SLURM_JOB_ID" in os.environ else 0.0


def run_stage(name: str, run_dir: RunDir) -> None:
    """Run the stage and record its result; a stage without a result file has not finished."""
    if name not in STAGES:
        raise UsageError(f"unknown stage {name!r}: allowed are {', '.join(STAGES)}")
    # A launcher that was killed leaves its stage, which saves before it ends: until then no other may start here.
    with RunLock(run_dir.path, f"stage {name}", launcher_pids(), patience()) if is_rank_zero() else nullcontext():
        if is_rank_zero() and name not in PREPARING:
            forget(name, run_dir)
        config = run_dir.load_config()
        keep_xla_out(name, config)
        module = cast(StageModule, importlib.import_module(STAGES[name]))
        result = module.run(config, run_dir)
        if is_rank_zero():
            write_json(run_dir.stage_file(name), result)


def keep_xla_out(stage: str, config: Config) -> None:
    """Where torch_xla is installed accelerate and transformers take its device, whatever they are asked for: before
    they are imported, tell them not to look for it. Optimum-neuron's own training needs it, and the trial before it."""
    if config.accelerator.engine != "neuron" or stage not in ON_ACCELERATOR:
        os.environ["USE_TORCH_XLA"] = "0"


def exit_code(code: int) -> int:
    """torchrun takes any other code than 0 for a failure and says so over many lines: the run's record says it all."""
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else code


def main(arguments: list[str]) -> int:
    """Process entry. Returns 0, or the exit code of a failure that has been told in one line; 130 when interrupted, 75
    when it was told to leave and can be started again."""
    name, path = arguments
    die_with_parent()
    if parent_is_gone():
        return 1
    try:
        check_stray_rank()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    try:
        run_stage(name, RunDir(Path(path)))
    except KeyboardInterrupt:  # Ctrl-C before the stage could end in order: the launcher says so, no traceback
        return INTERRUPTED
    except SuspendedError as suspended:
        if is_rank_zero():
            print(suspended, file=sys.stderr)
        return exit_code(SUSPENDED)
    except TrntuneError as error:
        if is_rank_zero():
            print(f"error: {redact(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
