"""The stage `merge`: the run's adapter and its base as one plain model directory, merged/ in the run directory."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.run_dir.layout import RunDir
from launcher.run_dir.result import RunStatus
from launcher.sizes import parse_size
from postprocess.merge import MergeOptions, merge
from postprocess.merge.files import RECORD, left_note
from postprocess.merge.options import UNSTATED
from postprocess.merge.run import check
from postprocess.outputs import check_foreign, discard
from postprocess.safetensors.header import source_tensors


def run(config: Config, run_dir: RunDir) -> dict[str, Any]:
    """Merge and prove it. A full run's model is one already: nothing is done. Returns where the model is."""
    start = time.perf_counter()
    fetched = run_dir.stage_result("fetch")
    if fetched is None or run_dir.stage_result("train") is None:
        raise TrntuneError(f"{run_dir.path}: stage merge needs the result of stage train: stages=[fetch,train,merge]")
    made = run_dir.model if config.method.name == "full" else run_dir.adapter
    if run_dir.sharded.is_dir() and not made.is_dir():
        raise TrntuneError(
            f"{run_dir.sharded} is of several ranks: first stage consolidate, stages=[consolidate,merge]"
        )
    settings = {"status": RunStatus.FINISHED, "settings": asdict(config.merge)}
    if config.method.name == "full":
        return {**settings, "model": str(run_dir.model), "seconds": 0.0}
    discard(run_dir.merged, RECORD)  # of an adapter that has been trained on since, or of other settings
    record = merge(Path(fetched["model_dir"]), run_dir.adapter, run_dir.merged, _options(config))
    for note in record["repaired"]:
        print(f"note: {note}", file=sys.stderr)
    if record["same_base"] is None:
        print(f"base not checked: {UNSTATED}")
    if record["tokenizer"]["left"]:
        print(f"tokenizer: {left_note(record)}")
    print(f"merged into {run_dir.merged}: {record['tensors']['changed']} tensors changed, {_proof(record)}")
    return {**settings, "model": str(run_dir.merged), "seconds": time.perf_counter() - start}


def rehearse(config: Config, run_dir: RunDir, saved: Path | None) -> None:
    """Before training: raise TrntuneError for what the merge would refuse after it. ``saved`` is the adapter as it
    begins, None where the ranks of a split model will save it in parts."""
    fetched = run_dir.stage_result("fetch")
    if config.method.name == "full" or fetched is None:
        return
    base = Path(fetched["model_dir"])
    check_foreign(run_dir.merged, RECORD)
    if saved is None:
        source_tensors(base)
    else:
        check(base, saved, run_dir.merged, _options(config))


def _options(config: Config) -> MergeOptions:
    size = parse_size(config.merge.shard_size, "merge.shard_size")
    return MergeOptions(config.merge.dtype, size, config.merge.logits)


def _proof(record: dict[str, Any]) -> str:
    logits = record["logits"]
    return "logits agree" if logits.get("compared") else f"logits not compared ({logits.get('reason')})"
