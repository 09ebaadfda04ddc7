"""A directory that exists whole or not at all, whoever crashes or comes at the same time, and whatever the power does.

``put_in_place`` is what it comes to: everything in the directory is on the disk before the directory has its name, and
the name is once the function has returned. Around it: ``replace_directory`` for what an earlier attempt may have left,
``staged`` where a second process is refused and a killed one's files may be gone on with, ``build_once`` where a
second process waits and takes what the first has made.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from launcher.errors import TrntuneError
from launcher.io import flush, fsync

# In a directory that is being filled. Its presence is the only proof that the directory is a leftover of ours, which
# may be removed; its lock that a process is still at work. Its lines: what the directory becomes, then the files that
# are whole and on disk.
MARKER = ".trntune_unfinished"


def sync_tree(root: Path) -> None:
    """Wait until everything in a directory is on the disk."""
    for path in [*root.rglob("*"), root]:
        if path.exists():  # a link may lead nowhere
            fsync(path)


def put_in_place(work: Path, final: Path) -> None:
    """Have everything in ``work`` on the disk, then give it the name ``final``, which nothing has."""
    sync_tree(work)
    name_durably(work, final)


def name_durably(work: Path, final: Path) -> None:
    """``put_in_place`` of a directory in which every file and folder is on the disk already."""
    fsync(work)
    work.rename(final)
    fsync(final.parent)


def replace_directory(work: Path, final: Path) -> None:
    """``put_in_place`` over what an earlier attempt may have left."""
    sync_tree(work)
    old = final.with_name(f"{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    name_durably(work, final)
    shutil.rmtree(old, ignore_errors=True)


def build_once(final: Path, build: Callable[[Path], None]) -> None:
    """Have ``build(directory)`` fill ``final``, unless it is there, or another process does so meanwhile: wait for it.

    What a builder left that died is removed by the next one. Raises OSError, and what ``build`` raises.
    """
    from filelock import FileLock

    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.with_name(f".{final.name}.lock")):
        if not final.is_dir():
            _build(final, build)


def _build(final: Path, build: Callable[[Path], None]) -> None:
    # Under the lock nobody else builds this one: whatever lies here is a dead builder's.
    for leftover in final.parent.glob(f".{final.name}.building-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.building-"))
    try:
        build(work)
        put_in_place(work, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def work_of(out: Path) -> Path:
    """Where ``out`` is written until it is whole."""
    out = out if out.name else out.absolute()  # `.` has no name
    return out.with_name(f"{out.name}.tmp")


@contextmanager
def staged(out: Path, content: str = "") -> Iterator[Path]:
    """Give ``out``.tmp to write into; when the block ends, it becomes ``out``, and on an error it is removed.

    What a killed process left there is removed first, but for the files that it noted (``note_whole``) if its
    ``content``, one line that says what they are made of, is the same and not empty. Raises TrntuneError while another
    process writes there, when something else is there, for a full disk and for a directory that can't be written.
    """
    work = work_of(out)
    with _claimed(work, content):
        try:
            yield work
            put_in_place(work, out)
            # After the rename: a kill before it leaves a leftover that is known, one after it a whole result.
            (out / MARKER).unlink()
            fsync(out)
        except OSError as error:
            _remove(work)
            raise _not_written(out, error) from None
        except BaseException:
            _remove(work)
            raise


def note_whole(work: Path, name: str) -> None:
    """Force a finished file of a staged directory to disk, and then note that it needs not be made again."""
    fsync(work / name)
    fsync(work)
    with (work / MARKER).open("a", encoding="utf-8") as stream:
        stream.write(f"{name}\n")
        flush(stream)


def noted_whole(work: Path) -> list[str]:
    """The files of a staged directory that were noted and are there."""
    names = (work / MARKER).read_text(encoding="utf-8", errors="replace").split("\n")[1:-1]
    return [name for name in names if (work / name).is_file()]


def check_free(out: Path) -> None:
    """Raise TrntuneError where something that isn't a killed process's leftover is in the way of writing ``out``."""
    work = work_of(out)
    if os.path.lexists(work) and not is_leftover(work):
        raise TrntuneError(
            f"{work} is in the way: no unfinished work of this command: move it or give another output directory"
        )


def is_leftover(work: Path) -> bool:
    """Whether a killed process of ours left this directory; an empty one was to get its marker, and holds nothing."""
    if work.is_symlink() or not work.is_dir():
        return False
    return (work / MARKER).is_file() or not any(work.iterdir())


@contextmanager
def _claimed(work: Path, content: str) -> Iterator[None]:
    """Hold the lock of the directory, with nothing in it but the marker and what may stay of an earlier process. The
    kernel lets go of the lock when the process ends, in whatever way."""
    try:
        check_free(work.with_name(work.name.removesuffix(".tmp")))
        work.mkdir(parents=True, exist_ok=True)
        stream = (work / MARKER).open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise _not_written(work, error) from None
    with stream:
        _lock(stream, work)
        try:
            _take_up(stream, work, content)
        except OSError as error:
            raise _not_written(work, error) from None
        yield


def _take_up(stream: IO[str], work: Path, content: str) -> None:
    """Leave what a process with the same content noted as whole; remove the rest and begin the marker anew."""
    stream.seek(0)
    before = stream.readline().removesuffix("\n")
    kept = noted_whole(work) if content and before == content else []
    stream.truncate(0)
    stream.write("".join(f"{line}\n" for line in (content, *kept)))
    flush(stream)
    _empty(work, kept)


def _lock(stream: IO[str], work: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.path.samestat(os.fstat(stream.fileno()), (work / MARKER).stat())
    except (BlockingIOError, FileNotFoundError):  # the latter: the other process has just finished
        held = False
    if not held:
        raise TrntuneError(f"{work} is being written by another process: wait for it")


def _empty(work: Path, kept: Sequence[str] = ()) -> None:
    for path in work.iterdir():
        if path.name not in (MARKER, *kept):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove(work: Path) -> None:
    """Remove a directory of ours, the marker last: what a kill leaves of it is then known as a leftover."""
    with suppress(OSError):
        _empty(work)
    shutil.rmtree(work, ignore_errors=True)


def _not_written(path: Path, error: OSError) -> TrntuneError:
    advice = "free room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the directory"
    return TrntuneError(f"{path} cannot be written: {error.strerror or error}; {advice}")
