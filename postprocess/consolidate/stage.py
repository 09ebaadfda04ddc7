"""The stage `consolidate`: what a split model's ranks saved, as one adapter or model directory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.run_dir.layout import RunDir
from launcher.run_dir.result import RunStatus
from postprocess.consolidate.output import RESULT
from postprocess.consolidate.run import Options, consolidate
from postprocess.outputs import check_foreign, discard


def run(config: Config, run_dir: RunDir) -> dict[str, Any]:
    """Make adapter/ or model/ of sharded/. Nothing is done where training has written them itself."""
    start = time.perf_counter()
    fetched, trained = run_dir.stage_result("fetch"), run_dir.stage_result("train")
    if fetched is None or trained is None:
        raise TrntuneError(f"{run_dir.path}: stage consolidate needs the result of stage train: stages=[fetch,train]")
    if trained["saved"] != run_dir.sharded.name:
        return {"status": RunStatus.FINISHED, "saved": trained["saved"], "seconds": 0.0}
    final = _made(config, run_dir)
    discard(final, RESULT)  # of shards that have been trained on since
    base = Path(fetched["model_dir"])
    record = consolidate(run_dir.sharded, final, Options(base=base), lambda text: print(text, file=sys.stderr))
    print(f"consolidated into {final}: {record['tensors']} tensors of {record['input']['tensor_parallel_ranks']} ranks")
    return {"status": RunStatus.FINISHED, "saved": final.name, "seconds": time.perf_counter() - start}


def rehearse(config: Config, run_dir: RunDir, saved: Path | None) -> None:
    """Before training: raise TrntuneError where something is in the way of what will be made. ``saved`` is None where
    there is something to consolidate: the ranks of a split model save in parts."""
    if saved is None:
        check_foreign(_made(config, run_dir), RESULT)


def _made(config: Config, run_dir: RunDir) -> Path:
    return run_dir.adapter if config.method.name == "lora" else run_dir.model
