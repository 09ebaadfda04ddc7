"""What the end of a run needs, tried before its first step: a run that can't be saved is not trained.

Everything is written that will be saved, but for the weights, into a folder of the run directory; it is read again, and
goes. The stages that follow try theirs on it (``rehearse`` of their modules).
"""

from __future__ import annotations

import errno
import importlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from transformers import AutoConfig, GenerationConfig

from launcher.config.schema import Config
from launcher.errors import SuspendedError, TrntuneError, disk_fault, in_one_line
from launcher.jobs.run_stage import STAGES, AfterTraining
from launcher.model_dir.generation_config import FILE
from launcher.paths import shown
from launcher.plan.disk import merged_bytes
from launcher.plan.room import Room, Sizes, little_room, room_of
from launcher.run_dir.layout import RunDir
from trainer.checkpoints.peers import Peers
from trainer.data.conversations import ChatRow
from trainer.data.rows import InstructionRow, Row
from trainer.data.tokenize import end_ids, prompt_ids
from trainer.engines.base import Engine
from trainer.models.load import load_tokenizer

Result = TypeVar("Result")
FOLDER = ".rehearsal"
MAX_WORDS = 400  # characters of what a library says
QUESTION = InstructionRow("What does it do?", "A text: 1 2 3.", "It answers.")
CONVERSATION = ChatRow(
    ({"role": "user", "content": "What does it do? 1 2 3."}, {"role": "assistant", "content": "It answers."}), (1,)
)


def rehearse(
    config: Config, run_dir: RunDir, engine: Engine, peers: Peers, tokenizer: Any, model_dir: Path, row: Row = QUESTION
) -> int:
    """Raise TrntuneError on every rank where the run, trained to its end, could not be saved. All ranks call it.
    ``row`` is one of its data.

    Returns the bytes of what lies beside saved weights.
    """
    first, folder = peers.rank == 0, run_dir.path / FOLDER
    together = engine.sharded or engine.gathers
    agreed(peers, lambda: try_places(run_dir) if first else None)
    try:
        with torch.random.fork_rng(devices=[]):  # training draws the same, whatever is tried before it
            agreed(peers, lambda: _saved(engine, folder, model_dir) if first or together else None)
            agreed(peers, lambda: _tried(config, run_dir, engine, tokenizer, folder, row) if first else None)
        beside = agreed(peers, lambda: _bytes_below(folder, weights=False) if first else None)
    finally:
        if first:
            shutil.rmtree(folder, ignore_errors=True)
    return beside[0] or 0


def check_room(
    config: Config, run_dir: RunDir, engine: Engine, peers: Peers, model_dir: Path, steps: int, beside: int
) -> str | None:
    """Raise TrntuneError on every rank where the disk is too small for ``steps`` steps, and what they leave. All ranks
    call it. With plan.force=true the reason is returned instead. ``beside``: bytes beside each of the weights."""
    shares = peers.all_gather(engine.saved_bytes())
    weights, checkpoint = (sum(column) for column in zip(*shares, strict=True))
    merged = merged_bytes(config, model_dir, engine.parameters().total)
    needed = room_of(config, Sizes(weights, checkpoint, merged, beside), steps)
    return agreed(peers, lambda: _little_room(config, run_dir, needed) if peers.rank == 0 else None)[0]


def agreed(peers: Peers, action: Callable[[], Result]) -> list[Result]:
    """The results of all ranks. Raises TrntuneError on every rank where one has failed."""
    result, failure = None, None
    try:
        result = action()
    except TrntuneError as error:
        failure = str(error)
    answers: list[tuple[Any, str | None]] = peers.all_gather((result, failure))
    failures = [why for _, why in answers if why is not None]
    if failures:
        raise TrntuneError(failures[0])
    return [answer for answer, _ in answers]


def try_places(run_dir: RunDir) -> None:
    """Make the folder to rehearse in, by the file operations of a checkpoint; look at what will be replaced.

    Raises TrntuneError for a run directory that can't be written.
    """
    try:
        for place in (run_dir.adapter, run_dir.model, run_dir.sharded, run_dir.checkpoints):
            _check_no_file(place, place.with_name(f"{place.name}.tmp"))
        for parent in (run_dir.path, run_dir.checkpoints):
            _try_directory(parent)
        (run_dir.path / FOLDER).mkdir(mode=0o700)
    except OSError as error:
        why = disk_fault(error) or f"{error.filename or run_dir.path}: {error.strerror or error}; check the directory"
        raise TrntuneError(f"{shown(run_dir.path)} can't be written, so nothing is trained: {why}") from None


def _try_directory(parent: Path) -> None:
    """Make and rename a directory in ``parent``, if that is there already, as what is saved gets its name."""
    if not parent.exists():
        return
    made, named = parent / f"{FOLDER}.tmp", parent / FOLDER
    for left in (made, named):
        shutil.rmtree(left, ignore_errors=True)
    made.mkdir(mode=0o700)
    made.rename(named)
    named.rmdir()


def _check_no_file(*places: Path) -> None:
    """Raise FileExistsError for a file where a directory will be written."""
    for place in places:
        if place.exists() and not place.is_dir():
            raise FileExistsError(errno.EEXIST, "there is a file where a directory will be written", str(place))


def try_tokenizer(tokenizer: Any, row: Row, prompt: str, folder: Path, trust_remote_code: bool) -> None:
    """Read the tokenizer saved in ``folder``. Raises TrntuneError where it makes other ids than ``tokenizer``, or where
    the prompt of ``row`` can't be written."""
    with _told("a prompt can't be written"):
        ours = _ids(tokenizer, row, prompt)
    with _told("the tokenizer can't be saved and read again"):
        theirs = _ids(load_tokenizer(folder, trust_remote_code), row, prompt)
    if ours != theirs:
        raise TrntuneError(
            f"{tokenizer.name_or_path}: its tokenizer, saved and read again, makes other ids ({ours} before, {theirs} "
            "after), so nothing is trained; save it once with transformers' save_pretrained and correct it"
        )


def _ids(tokenizer: Any, row: Row, prompt: str) -> tuple[list[int], list[int], int]:
    """The prompt of a row, the tokens that end an answer, and the one that fills up."""
    return prompt_ids(row, prompt, tokenizer), end_ids(row, prompt, tokenizer), tokenizer.pad_token_id


def _saved(engine: Engine, folder: Path, model_dir: Path) -> None:
    with _told(f"{model_dir}: what is trained from it can't be saved"):
        engine.rehearse(folder)


def _tried(config: Config, run_dir: RunDir, engine: Engine, tokenizer: Any, folder: Path, row: Row) -> None:
    """Read what was saved, and let the stages that follow try theirs."""
    trust = config.model.trust_remote_code
    try_tokenizer(tokenizer, row, config.dataset.prompt, folder, trust)
    with _told("what is saved can't be read again"):
        if (folder / "config.json").is_file():
            AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        if (folder / FILE).is_file():
            GenerationConfig.from_pretrained(folder).validate(strict=True)
    for stage in _later(config.stages):
        module = cast(AfterTraining, importlib.import_module(STAGES[stage]))
        with _told(f"stage {stage} could not do its work"):
            module.rehearse(config, run_dir, None if engine.sharded else folder)


def _later(stages: list[str]) -> list[str]:
    """The stages of a run that follow its training."""
    order = list(STAGES)
    return [stage for stage in stages if order.index(stage) > order.index("train")]


def _little_room(config: Config, run_dir: RunDir, needed: Room) -> str | None:
    """Why there is too little room, which only plan.force lets pass, or None."""
    there = sum(_bytes_below(place) for place in (run_dir.checkpoints, run_dir.merged))
    fault = little_room(run_dir.path, [needed], there)
    if fault is not None and not config.plan.force:
        raise TrntuneError(f"nothing is trained: {fault}")
    return fault


def _bytes_below(directory: Path, weights: bool = True) -> int:
    """Bytes of the files in a directory, 0 where there is none; without ``weights`` of those beside them."""
    files = [file for file in directory.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if weights or file.suffix != ".safetensors")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever the libraries raise as one line: what fails now would fail when all has been trained."""
    try:
        yield
    except SuspendedError:  # a signal came
        raise
    except TrntuneError as error:
        raise TrntuneError(f"{what}, so nothing is trained: {error}") from None
    except Exception as error:  # of transformers, peft, tokenizers, or of a model's own code
        raise TrntuneError(f"{what}, so nothing is trained: {in_one_line(error, MAX_WORDS)}") from None
