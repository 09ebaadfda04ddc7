"""Putting what was trained in its place: whole, or what was there before."""

from __future__ import annotations

import shutil
from pathlib import Path

from launcher.atomic_directory import replace_directory
from launcher.errors import TrntuneError
from launcher.paths import shown
from trainer.checkpoints.peers import Peers
from trainer.checkpoints.writer import PartFailed, together
from trainer.engines.base import Engine


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


def _emptied(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
