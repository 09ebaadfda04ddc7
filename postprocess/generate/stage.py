"""The stage `generate`: what the run has taught the model, on rows that it has held out."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trainer.lean_peft  # noqa: F401 (before whatever imports peft)
from launcher.config.machine_schema import ANSWERING_DEVICES
from launcher.config.schema import Config
from launcher.errors import TrntuneError
from launcher.run_dir.layout import RunDir
from launcher.run_dir.result import RunStatus
from postprocess.generate.answer import Sampling
from postprocess.generate.models import locate
from postprocess.generate.questions import held_out
from postprocess.generate.run import Options, generate, write
from postprocess.generate.score import ROUGE_L
from postprocess.generate.show import show


def run(config: Config, run_dir: RunDir) -> dict[str, Any]:
    """Answer, write generate/ in the run directory, print. Returns the scores of each model and the seconds taken."""
    start = time.perf_counter()
    settings = config.generate
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
    device = config.accelerator.device if config.accelerator.device in ANSWERING_DEVICES else "cpu"
    options = Options(sampling, settings.batch_size, config.training.max_length, device=device)
    place = locate(run_dir.path, None, None)
    outcome = generate(place, held_out(run_dir, settings.questions), options)
    write(outcome, options, run_dir.path / "generate")
    show(outcome, most=3)
    seconds = time.perf_counter() - start
    scores = {"scores": outcome.summary, "rouge_l": ROUGE_L}
    return {"status": RunStatus.FINISHED, "settings": asdict(settings), **scores, "seconds": seconds}


def rehearse(config: Config, run_dir: RunDir, saved: Path | None) -> None:
    """Before training: raise TrntuneError where no question can be asked, or none of the answers be written."""
    directory = run_dir.path / "generate"
    if directory.exists() and not directory.is_dir():
        raise TrntuneError(f"{directory} is in the way: it is a file: move it")
    if not held_out(run_dir, config.generate.questions):
        raise TrntuneError("there is no question to answer")
