"""When a run saves, what is reported of it, and where a run that was started again goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from launcher.config.schema import Config, model_processes, world_size
from launcher.errors import TrntuneError
from launcher.paths import shown
from launcher.run_dir.config_diff import ALLOW, config_sha256, fixed_part, since, under
from launcher.run_dir.provenance import installed, installed_packages
from trainer.checkpoints.manifest import InvalidCheckpointError, Manifest, Position, World
from trainer.checkpoints.parts import PARTS
from trainer.checkpoints.peers import Peers
from trainer.checkpoints.state import EngineState
from trainer.checkpoints.store import Rejected, Selection, Store
from trainer.checkpoints.writer import Outcome, Snapshot, Writer

if TYPE_CHECKING:
    from trainer.data.prepare import Digests

PACKAGES = ("trntune", "torch", "transformers", "tokenizers", "peft", "accelerate", "numpy")
_DATA, _ROWS = "data_sha256", "rows_sha256"
"""of the rows, as this version of tokenizers reads them and whichever reads them"""
STEPS_FILE, RUN_FILE = "steps.safetensors", "run.json"

StageState = tuple[dict[str, torch.Tensor], dict[str, Any]]


@dataclass(frozen=True)
class Restored:
    """A checkpoint that the run goes on from. Its files have been verified."""

    directory: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one file, in host memory."""
        return load_file(self.directory / name)

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Those of the tensors of one file, none of which is read."""
        with safe_open(self.directory / name, framework="pt") as stored:
            return {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118

    def has(self, name: str) -> bool:
        return name in self.manifest.files

    def document(self, name: str) -> Any:
        """The JSON value of one file."""
        import json

        return json.loads((self.directory / name).read_text(encoding="utf-8"))


@dataclass
class SaveReport:
    """What saving cost, for the result."""

    saved: int = 0
    failed: int = 0
    last_step: int | None = None
    bytes: int = 0
    """of the last one"""
    write_seconds: float = 0.0
    """beside the training, all of them"""
    stall_seconds: float = 0.0
    """in which training waited, all of them"""
    failures: list[str] = field(default_factory=list)


def identity(config: Config, data: Digests, base: str | None) -> dict[str, Any]:
    """What a checkpoint's weights and position are of. ``base`` is the fingerprint of the model that was loaded."""
    return {**fixed_part(config), _DATA: data.versioned, _ROWS: data.lasting, "base": base}


def world_of(config: Config) -> World:
    """The processes of this run."""
    parallel = config.parallelism
    return World(world_size(config), parallel.data_parallel, parallel.tensor_parallel, parallel.pipeline_parallel)


def check_same_run(manifest: Manifest, config: Config, wanted: dict[str, Any]) -> None:
    """Raise InvalidCheckpointError for a checkpoint of another run, or of processes that this run doesn't have."""
    recorded = since(manifest.identity)
    # Checkpoints of earlier versions know their rows only as their version of tokenizers read them.
    left_out = _DATA if _ROWS in recorded else _ROWS
    for key in sorted((wanted.keys() | recorded.keys()) - {left_out}):
        here, there = wanted.get(key), recorded.get(key)
        if here != there:
            why = "" if key != _DATA else f": other rows, or other libraries read them{_written_with(manifest)}"
            raise InvalidCheckpointError(f"it is of another run: {key} is {there} there, {here} here{why}")
    world, there = world_of(config), manifest.world
    may_differ = _can_be_regrouped(manifest, config)
    sizes = ("data_parallel", "tensor_parallel", "pipeline_parallel")
    changed = [f"parallelism.{size}" for size in sizes if getattr(world, size) != getattr(there, size)]
    allowed = all(under(key, config.training.allow_config_change) for key in changed)
    if changed and not (may_differ and allowed):
        raise InvalidCheckpointError(
            f"it was written by {_described(there)}, this run has {_described(world)}"
            + (f" ({ALLOW}=[parallelism] takes it)" if may_differ else "")
        )


def _can_be_regrouped(manifest: Manifest, config: Config) -> bool:
    """Whether ranks can read what others have written: all of a replica each, or parts of the torch engine."""
    whole = manifest.world.tensor_parallel * manifest.world.pipeline_parallel == 1
    if config.accelerator.engine == "torch":
        return whole or PARTS in manifest.files
    return whole and model_processes(config) == 1


def _described(world: World) -> str:
    each = world.tensor_parallel * world.pipeline_parallel
    return f"{world.size} processes" + (f", {each} a replica" if each > 1 else "")


class Checkpointer:
    """One rank's. All ranks make the same calls in the same order."""

    def __init__(
        self,
        config: Config,
        directory: Path,
        peers: Peers,
        wanted: dict[str, Any],
        position: Callable[[int], Position],
        stage_state: Callable[[], StageState],
        report: Callable[[Outcome, float], None],
        say: Callable[[str], None],
        beside: Path | None = None,
    ) -> None:
        """``wanted`` is the identity; ``position`` says where in the data a step ends; ``stage_state`` copies what the
        stage itself must know to go on; ``report`` is told how each save ended, and how long training waited;
        ``beside`` is a file that a checkpoint speaks of, so that it must be on the disk before it."""
        self.config, self.peers, self.wanted = config, peers, wanted
        self.position, self.stage_state, self.report, self.say = position, stage_state, report, say
        self.beside = beside
        self.store = Store(directory)
        self.writer = Writer(self.store, peers, config.training.keep_checkpoints)
        self.summary = SaveReport()
        self.resumed: Restored | None = None
        self.saved_step = 0
        self._stalled = 0.0

    def find(self) -> Restored | None:
        """The newest checkpoint that can be used; broken newer ones are told of and set aside.

        Raises TrntuneError when there are checkpoints and none can be used. Rank 0 looks, the others follow it.
        """
        mine = self._select() if self.peers.rank == 0 else None
        selection: Selection = self.peers.all_gather(mine)[0]
        if selection.directory is None or selection.manifest is None:
            if selection.rejected:
                raise TrntuneError(self._none_left(selection.rejected))
            return None
        self.resumed = Restored(selection.directory, selection.manifest)
        self.saved_step = selection.manifest.step
        return self.resumed

    def due(self, step: int, last: bool) -> bool:
        """True when the configuration wants a checkpoint after ``step``. The ``last`` one is always wanted: what
        follows it, evaluation and answers, may be ended too."""
        every = self.config.training.save_every
        return every is not None and (last or step % every == 0) and step > self.saved_step

    def save(self, state: EngineState) -> None:
        """Copy what the stage must know and begin to write; waits for the save before. ``state`` is already a copy."""
        start = time.perf_counter()
        self.wait()
        tensors, document = dict(state.tensors), dict(state.documents)
        if self.peers.rank == 0:
            steps, run = self.stage_state()
            tensors[STEPS_FILE], document[RUN_FILE] = steps, run
        manifest = Manifest(
            step=state.step,
            epoch=state.epoch,
            position=self.position(state.step),
            world=world_of(self.config),
            identity=self.wanted,
            config_sha256=config_sha256(self.config),
            versions=installed_packages(PACKAGES),
            created_at="",
            files={},
        )
        self.writer.submit(Snapshot(manifest, tensors, document, self.beside))
        self.saved_step = state.step
        self._stalled += time.perf_counter() - start

    def stalled(self, seconds: float) -> None:
        """Count time in which the engine copied its state and training waited."""
        self._stalled += seconds

    def poll(self) -> None:
        """Report a save that has ended by now, without waiting."""
        if self.writer.finished():
            self.wait()

    def wait(self) -> Outcome | None:
        """Wait for the save under way, if any, and report it."""
        outcome = self.writer.collect()
        if outcome is None:
            return None
        self._account(outcome)
        self.report(outcome, self._stalled)
        self._stalled = 0.0
        return outcome

    def close(self) -> None:
        """Wait for what is being written."""
        self.wait()
        self.writer.close()

    def _account(self, outcome: Outcome) -> None:
        summary = self.summary
        summary.write_seconds += outcome.seconds
        summary.stall_seconds += self._stalled
        if outcome.failure is not None:
            summary.failed += 1
            summary.failures.append(f"step {outcome.step}: {outcome.failure}")
            # The next one that is due is tried again, at this step too.
            self.saved_step = summary.last_step or (self.resumed.step if self.resumed else 0)
            return
        summary.saved += 1
        summary.last_step, summary.bytes = outcome.step, outcome.bytes

    def _select(self) -> Selection:
        self.store.clean()
        selection = self.store.select(lambda manifest: check_same_run(manifest, self.config, self.wanted))
        if selection.directory is not None:
            for rejected in selection.rejected:
                self.say(f"warning: {shown(rejected.directory)} can't be used: {rejected.reason}")
                self.store.set_aside(rejected)
        return selection

    def _none_left(self, rejected: Iterable[Rejected]) -> str:
        reasons = "; ".join(f"{each.directory.name}: {each.reason}" for each in rejected)
        return (
            f"{shown(self.store.root)}: no checkpoint can be used ({reasons}); to begin from the first step, "
            f"remove {shown(self.store.root)}"
        )


def _written_with(manifest: Manifest) -> str:
    was = manifest.versions.get("transformers")
    return "" if was in (None, installed("transformers")) else f" (it was written with transformers {was})"
