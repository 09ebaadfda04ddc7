"""The directory of a run's checkpoints: step-N are committed, *.tmp are not, *.invalid were found to be broken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.atomic_directory import name_durably
from launcher.io import fsync, write_durably
from launcher.run_dir.reached import checkpoint_steps
from trainer.checkpoints.manifest import MANIFEST, InvalidCheckpointError, Manifest, to_text, verify


@dataclass(frozen=True)
class Rejected:
    """A checkpoint that can't be used."""

    directory: Path
    reason: str


@dataclass(frozen=True)
class Selection:
    """The newest checkpoint that can be used, if any, and newer ones that can't."""

    directory: Path | None
    manifest: Manifest | None
    rejected: tuple[Rejected, ...]


class Store:
    """Used by one process at a time: rank 0 of the run that holds the run directory's lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def steps(self) -> list[int]:
        """Steps that have a committed directory, whether or not its files are still whole; ascending."""
        return checkpoint_steps(self.root)

    def directory(self, step: int) -> Path:
        return self.root / f"step-{step}"

    def temporary(self, step: int) -> Path:
        return self.root / f"step-{step}.tmp"

    def begin(self, step: int) -> Path:
        """An empty directory that is no checkpoint yet."""
        if not self.root.is_dir():
            self.root.mkdir(mode=0o700)
            fsync(self.root.parent)
        temporary = self.temporary(step)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(mode=0o700)
        return temporary

    def commit(self, manifest: Manifest) -> Path:
        """Make the temporary directory of the step a checkpoint: the manifest, then one rename.

        The caller has written and synced every file and subdirectory of it. A crash at any point leaves the temporary
        directory, which is no checkpoint, or the whole one.
        """
        temporary, final = self.temporary(manifest.step), self.directory(manifest.step)
        write_durably(temporary / MANIFEST, to_text(manifest))
        name_durably(temporary, final)
        return final

    def discard(self, step: int) -> None:
        """Remove what a failed save left; what can't be removed is in nobody's way."""
        shutil.rmtree(self.temporary(step), ignore_errors=True)

    def retain(self, keep: int) -> None:
        """Delete all but the ``keep`` newest. Called once the newest is durable."""
        for step in self.steps()[:-keep]:
            # Renamed first: a crash while files go leaves no directory that looks like a checkpoint.
            doomed = self.temporary(step)
            self.directory(step).rename(doomed)
            shutil.rmtree(doomed)

    def select(self, usable: Callable[[Manifest], None]) -> Selection:
        """The newest checkpoint whose every byte is as its manifest says, and that ``usable`` does not refuse.

        ``usable`` raises InvalidCheckpointError. Nothing is changed on disk.
        """
        rejected = []
        for step in reversed(self.steps()):
            directory = self.directory(step)
            try:
                manifest = verify(directory, contents=True)
                usable(manifest)
            except InvalidCheckpointError as error:
                rejected.append(Rejected(directory, str(error)))
                continue
            return Selection(directory, manifest, tuple(rejected))
        return Selection(None, None, tuple(rejected))

    def set_aside(self, rejected: Rejected) -> None:
        """Rename a broken checkpoint to step-N.invalid, so that its step can be saved again."""
        aside = rejected.directory.with_name(f"{rejected.directory.name}.invalid")
        with suppress(OSError):
            shutil.rmtree(aside, ignore_errors=True)
            rejected.directory.rename(aside)

    def clean(self) -> None:
        """Remove what crashes left of unfinished saves."""
        if self.root.is_dir():
            for path in self.root.glob("step-*.tmp"):
                shutil.rmtree(path, ignore_errors=True)
