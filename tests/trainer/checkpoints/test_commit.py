"""A save that is killed at any file operation leaves the old checkpoint or the new one, whole: forked processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from trainer.checkpoints import durable
from trainer.checkpoints.manifest import Manifest, Position, World
from trainer.checkpoints.peers import SingleProcess
from trainer.checkpoints.store import Store
from trainer.checkpoints.writer import Outcome, Snapshot, Writer, write


def manifest(step: int, ranks: int = 1) -> Manifest:
    return Manifest(step, step / 4, Position(0, step), World(ranks, ranks, 1, 1), {"seed": 0}, "c", {}, "", {})


def snapshot(step: int, rank: int = 0, ranks: int = 1) -> Snapshot:
    tensors = {f"rng-{rank}.safetensors": {"state": torch.full((64,), step)}}
    documents: dict[str, Any] = {}
    if rank == 0:
        tensors["weights/model.safetensors"] = {"w": torch.full((1000,), float(step))}
        documents["run.json"] = {"step": step}
    return Snapshot(manifest(step, ranks), tensors, documents)


class Operations:
    """Counts the file operations of a save in this process, and does something at the one of a given number."""

    def __init__(self, at: int | None, then: Callable[[], None]) -> None:
        self.at, self.then, self.count = at, then, 0

    def install(self) -> None:
        for owner, name in (
            (os, "fsync"), (os, "open"), (os, "mkdir"), (os, "rename"), (os, "unlink"), (os, "rmdir"),
            (durable, "save_file"), (Path, "open"), (Path, "rename"), (Path, "mkdir"), (shutil, "rmtree"),
        ):  # fmt: skip
            setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.then()
            return real(*args, **kwargs)

        return operation


def in_child(action: Callable[[], int]) -> int:
    """The wait status of a forked process that exits with what the action returns (below 200)."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(action())
        except BaseException:
            os._exit(255)
    return os.waitpid(pid, 0)[1]


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def newest(root: Path) -> tuple[int, float]:
    """Step of the newest valid checkpoint, and what its weights hold."""
    selection = Store(root).select(lambda _: None)
    assert selection.manifest is not None, selection.rejected
    assert selection.rejected == ()
    loaded = safetensors.torch.load_file(selection.directory / "weights" / "model.safetensors")
    return selection.manifest.step, float(loaded["w"][0])


def prepared(root: Path) -> Path:
    """Two checkpoints, as retention leaves them."""
    for step in (1, 2):
        assert write(snapshot(step), Store(root), SingleProcess(), keep=2).failure is None
    return root


def count_operations(root: Path) -> int:
    def save() -> int:
        operations = Operations(None, kill_self)
        operations.install()
        write(snapshot(3), Store(root), SingleProcess(), keep=2)
        return operations.count

    return os.waitstatus_to_exitcode(in_child(save))


def test_killed_at_every_file_operation_of_a_save(tmp_path):
    total = count_operations(prepared(tmp_path / "counted"))
    assert 30 < total < 200
    seen = set()
    for number in range(1, total + 1):
        root = Path(shutil.copytree(tmp_path / "counted", tmp_path / str(number)))
        shutil.rmtree(root)
        prepared(root)

        def save(root: Path = root, number: int = number) -> int:
            Operations(number, kill_self).install()
            write(snapshot(3), Store(root), SingleProcess(), keep=2)
            return 0

        status = in_child(save)
        assert os.WIFSIGNALED(status), number
        step, value = newest(root)
        assert value == step
        seen.add(step)
        # Whoever comes next can save that step, and nothing of the dead one stays.
        store = Store(root)
        store.clean()
        assert write(snapshot(4), store, SingleProcess(), keep=2).failure is None
        assert newest(root) == (4, 4.0)
        assert len([path for path in root.iterdir() if path.name != "step-4"]) == 1
        shutil.rmtree(root)
    assert seen == {2, 3}


class PipePeers:
    """Two forked ranks."""

    def __init__(self, rank: int, other: Connection) -> None:
        self.rank, self.other = rank, other

    def all_gather(self, value: Any) -> list[Any]:
        try:
            self.other.send(value)
            theirs = self.other.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"connection closed by peer ({error})") from None
        return [value, theirs] if self.rank == 0 else [theirs, value]


def save_by_two(root: Path, victim: int, at: int | None, then: Callable[[], None]) -> list[int]:
    """Wait statuses of two ranks that save step 3 together, while something happens to one of them."""
    ends = Pipe()
    pids = []
    for rank in (0, 1):
        pid = os.fork()
        if pid == 0:
            try:
                ends[1 - rank].close()
                operations = Operations(at if rank == victim else None, then)
                operations.install()
                outcome = write(snapshot(3, rank, 2), Store(root), PipePeers(rank, ends[rank]), keep=2)
                os._exit(1 if outcome.failure else 100 + min(operations.count, 90))
            except BaseException:
                os._exit(255)
        pids.append(pid)
    for end in ends:
        end.close()
    return [os.waitpid(pid, 0)[1] for pid in pids]


@pytest.mark.parametrize("victim", [0, 1])
def test_two_ranks_one_of_them_killed_at_every_file_operation(tmp_path, victim):
    statuses = save_by_two(prepared(tmp_path / "counted"), victim, None, kill_self)
    total = os.waitstatus_to_exitcode(statuses[victim]) - 100
    assert total > 5
    assert newest(tmp_path / "counted") == (3, 3.0)
    for number in range(1, total + 1):
        root = prepared(tmp_path / str(number))
        statuses = save_by_two(root, victim, number, kill_self)
        assert os.WIFSIGNALED(statuses[victim])
        step, value = newest(root)
        assert value == step
        # The other one doesn't hang, and takes the save for failed: it can't know better.
        assert os.waitstatus_to_exitcode(statuses[1 - victim]) in (1, *range(100, 200))
        shutil.rmtree(root)


def no_space() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_failure_at_any_file_operation_of_either_rank_is_reported_by_both_and_leaves_the_old_one(tmp_path, victim):
    statuses = save_by_two(prepared(tmp_path / "counted"), victim, None, no_space)
    total = os.waitstatus_to_exitcode(statuses[victim]) - 100
    failed = 0
    for number in range(1, total + 1):
        root = prepared(tmp_path / str(number))
        codes = [os.waitstatus_to_exitcode(status) for status in save_by_two(root, victim, number, no_space)]
        assert (codes[0] == 1) == (codes[1] == 1), (number, codes)
        assert 255 not in codes
        step, value = newest(root)
        assert value == step
        failed += codes[0] == 1
        assert codes[0] == 1 or step == 3
        shutil.rmtree(root)
    assert failed > 5


def test_a_failed_save_says_why_and_removes_what_it_had_written(tmp_path, monkeypatch):
    root = prepared(tmp_path / "checkpoints")
    monkeypatch.setattr(durable, "save_file", lambda *_, **__: no_space())
    outcome = write(snapshot(3), Store(root), SingleProcess(), keep=2)
    assert outcome.failure == "[Errno 28] No space left on device"
    assert sorted(path.name for path in root.iterdir()) == ["step-1", "step-2"]


def test_training_goes_on_while_a_save_is_written(tmp_path):
    """The writer's thread is stopped in the middle of a save: submit has returned long before."""
    gate, opened = socket.socketpair()
    store = Store(prepared(tmp_path / "checkpoints"))
    writer = Writer(store, SingleProcess(), keep=1)
    begin = store.begin

    def held(step: int) -> Path:
        opened.recv(1)
        return begin(step)

    store.begin = held  # type: ignore[method-assign]
    writer.submit(snapshot(3))
    assert not writer.finished()
    assert store.steps() == [1, 2]
    gate.send(b"x")
    outcome = writer.collect()
    assert isinstance(outcome, Outcome)
    assert (outcome.step, outcome.failure) == (3, None)
    assert outcome.bytes > 4000
    assert store.steps() == [3]
    writer.close()


def test_an_older_checkpoint_that_cannot_be_deleted_is_a_warning(tmp_path, monkeypatch):
    store = Store(prepared(tmp_path / "checkpoints"))
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: no_space())
    outcome = write(snapshot(3), store, SingleProcess(), keep=1)
    assert outcome.failure is None
    assert "can't be deleted" in (outcome.warning or "")
    assert newest(store.root) == (3, 3.0)
