"""Putting what was trained in its place: whole, or what was there before."""

from __future__ import annotations

import shutil
from pathlib import Path

from launcher.atomic_directory import replace_directory
from launcher.config.schema import Config
from launcher.errors import SuspendedError, TrntuneError, in_one_line
from launcher.paths import shown
from trainer.checkpoints.peers import Peers
from trainer.checkpoints.writer import PartFailed, together
from trainer.engines.base import Engine
from trainer.models.fingerprint import write_base
from trainer.rehearsal import MAX_WORDS


def save_sharded(engine: Engine, peers: Peers, final: Path) -> None:
    """Every rank writes its part beside ``final``; once all have, rank 0 puts the whole in its place.

    Raises TrntuneError on every rank when one could not.
    """
    temporary, first = final.with_name(f"{final.name}.tmp"), peers.rank == 0
    try:
        together(peers, lambda: _emptied(temporary) if first else None)
        together(peers, lambda: engine.save(temporary))
        together(peers, lambda: replace_directory(temporary, final) if first else None)
    except PartFailed as error:
        raise TrntuneError(f"{shown(final)} can't be written: {error}; free room there") from None


def save_whole(engine: Engine, config: Config, model_dir: Path, final: Path) -> None:
    """What the engine saves on this rank, in its place. An adapter says which base it belongs to.

    Raises NonFiniteLossError as ``engine.save`` does, and TrntuneError, in one line, for whatever else fails.
    """
    temporary = final.with_name(f"{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        engine.save(temporary)
        if config.method.name == "lora":
            write_base(temporary, model_dir, config.model.name)
        replace_directory(temporary, final)
    except (TrntuneError, SuspendedError):
        raise
    except Exception as error:  # of the disk, transformers, peft, tokenizers, or of a model's own code
        shutil.rmtree(temporary, ignore_errors=True)
        advice = "; free room there" if isinstance(error, OSError) else ""
        raise TrntuneError(f"{final} can't be written: {in_one_line(error, MAX_WORDS)}{advice}") from None


def _emptied(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
