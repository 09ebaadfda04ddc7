"""One stage of a run, as a process: `python -m launcher.stage train RUN_DIR`, alone or under torchrun."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, Protocol, cast

from launcher.errors import TrntuneError, UsageError
from launcher.lifetime import die_with_parent, parent_is_gone
from launcher.rundir import RunDir, write_json
from launcher.schema import Config

# A stage's name, and the module whose run(config, run_dir) is the stage. Named, not imported: the launcher is
# free of torch, and only the stage's own process pays for what it uses.
STAGES = {"fetch": "trainer.fetch", "train": "trainer.train"}


class StageModule(Protocol):
    """What a module in STAGES offers."""

    def run(self, config: Config, run_dir: RunDir) -> dict[str, Any]:
        """Do the stage's work and return what later stages and reports need, as JSON values."""
        ...


def is_rank_zero() -> bool:
    """True in the one process that writes: torchrun numbers its processes in RANK."""
    return int(os.environ.get("RANK", "0")) == 0


def run_stage(name: str, run_dir: RunDir) -> None:
    """Run the stage and record its result; a stage without a result file has not finished."""
    if name not in STAGES:
        raise UsageError(f"unknown stage {name!r}: allowed are {', '.join(STAGES)}")
    module = cast(StageModule, importlib.import_module(STAGES[name]))
    result = module.run(run_dir.load_config(), run_dir)
    if is_rank_zero():
        write_json(run_dir.stage_file(name), result)


def main(arguments: list[str]) -> int:
    """Process entry. Returns 0, or the exit code of a failure that has been told in one line; 130 when interrupted."""
    name, path = arguments
    die_with_parent()
    if parent_is_gone():
        return 1
    try:
        run_stage(name, RunDir(Path(path)))
    except KeyboardInterrupt:  # Ctrl-C before the stage could end in order: the launcher says so, no traceback
        return 130
    except TrntuneError as error:
        if is_rank_zero():
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
