"""From a checkpoint to a directory that transformers or peft loads."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.errors import TrntuneError, UsageError
from launcher.io import write_atomic, write_json
from launcher.model_dir.files import SINGLE
from launcher.model_dir.generation_config import repair_of, repaired_texts
from postprocess.consolidate.checkpoint import locate_checkpoint, open_checkpoint, verified
from postprocess.consolidate.locate import Location, locate
from postprocess.consolidate.neuron import open_neuron
from postprocess.consolidate.origin import base_of_run, origin_of_shards, stated_base
from postprocess.consolidate.output import RESULT, finished, whole_directory
from postprocess.consolidate.source import Source
from postprocess.outputs import check_apart
from postprocess.safetensors.shards import plan_shards, total_bytes
from postprocess.safetensors.writer import ShardedWriter
from trainer.checkpoints.manifest import MANIFEST

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_MODEL = ("config.json", "generation_config.json", *_TOKENIZER)
_ADAPTER = "adapter_model.safetensors"
_VERSIONS = ("trntune", "torch", "safetensors")


@dataclass(frozen=True)
class Options:
    """``shard_bytes``: the most bytes of tensors in one file. ``base``: the base model's directory, for what the
    checkpoint lacks of config and tokenizer. ``allow_diverged``: take rank 0's of replicas that differ."""

    shard_bytes: int = 5_000_000_000
    base: Path | None = None
    allow_diverged: bool = False


def consolidate(
    source: Path, out: Path, options: Options | None = None, warn: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Write the checkpoint below ``source`` as one model or adapter directory ``out``; returns its consolidate.json.

    Tensors are read memory-mapped and written one after the other, in small pieces: memory does not grow with them.
    ``out`` appears whole or not at all; after a kill the same call goes on behind the last whole file. Nothing is done
    when it is this input's result already (then ``reused`` is true). ``warn`` is told what the result's reader should
    know. Raises UsageError for an ``out`` that is something else, TrntuneError for an input that is not complete or
    not sound.
    """
    options = options or Options()
    opened = open_source(source, options.base)
    out = out.absolute()
    check_apart(out, _inputs(opened))
    fingerprint = _fingerprint(opened, options)
    result = finished(out, fingerprint)
    if result is not None:
        return {**result, "reused": True}
    warn = warn or (lambda _: None)
    warnings = opened.check(options.allow_diverged)
    for warning in warnings:
        warn(warning)
    # peft reads an adapter from one file.
    shard_bytes = options.shard_bytes if opened.kind == "model" else 1 + sum(spec.nbytes for spec in opened.specs)
    with whole_directory(out, _work_content(fingerprint), total_bytes(plan_shards(opened.specs, shard_bytes))) as work:
        for note in _write_texts(opened, work, out):
            warn(note)
            warnings = [*warnings, note]
        _write_tensors(opened, work, shard_bytes)
        result = _result(opened, work, fingerprint, warnings)
        write_json(work / RESULT, result)
    return result


def open_source(source: Path, base: Path | None) -> Source:
    """The checkpoint below ``source``, of whatever format. Raises UsageError where there is none.

    Another format is another ``locate`` and another class with Source's members, asked here.
    """
    if not source.is_dir():
        raise UsageError(f"{source} is no directory: give a run, a checkpoint or the shards in it")
    if base is not None and not base.is_dir():
        raise UsageError(f"{base} is no directory: --base is the base model's directory")
    checkpoint = None if (location := locate(source)) else locate_checkpoint(source)
    if checkpoint is not None:
        location = locate(checkpoint)
    if location is not None:
        return _open_shards(location, base)
    if checkpoint is not None:
        return open_checkpoint(checkpoint, base)
    raise UsageError(
        f"{source} holds no checkpoint: there is no step-N, no shards/ and no adapter_<name>/adapter_shards/"
    )


def _open_shards(location: Location, base: Path | None) -> Source:
    """Shards of optimum-neuron's, or of the neuron engine: those in one of its checkpoints are verified first."""
    if not (location.home / MANIFEST).is_file():
        source = open_neuron(location, base)
        return source.with_texts(origin_of_shards(location.home)) if source.kind == "adapter" else source
    manifest = verified(location.home)
    source = open_neuron(location, base or base_of_run(location.home))
    return source.with_texts(stated_base(manifest)) if source.kind == "adapter" else source


def _result(source: Source, work: Path, fingerprint: str, warnings: list[str]) -> dict[str, Any]:
    return {
        "input": {"path": str(source.directory), "fingerprint": fingerprint, **source.describe()},
        "kind": source.kind,
        "tensors": len(source.specs),
        "bytes": sum(spec.nbytes for spec in source.specs),
        "files": {path.name: path.stat().st_size for path in sorted(work.iterdir()) if not path.name.startswith(".")},
        "warnings": warnings,
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def _inputs(source: Source) -> list[Path]:
    """The directories that the result must lie apart from: not the one around the shards, where a run keeps it."""
    around = source.directory.resolve().parents
    return [source.directory, *(place for place in source.companions if place.resolve() not in around)]


def _fingerprint(source: Source, options: Options) -> str:
    """What makes two inputs the same: their files' names, sizes and times, and the options."""
    stats = [(str(path), path.stat()) for path in source.files]
    content = {
        "files": sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats),
        "shard_bytes": options.shard_bytes,
        "base": str(options.base.absolute()) if options.base else None,
        "allow_diverged": options.allow_diverged,
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _work_content(fingerprint: str) -> str:
    """What unfinished work must have been begun for to be gone on with: by this version, too."""
    return f"{fingerprint} trntune {importlib.metadata.version('trntune')}"


def _write_tensors(source: Source, work: Path, shard_bytes: int) -> None:
    try:
        with _one_thread(), ShardedWriter(work, source.specs, shard_bytes, resume=True) as writer:
            for spec in filter(lambda spec: writer.lacks(spec.name), source.specs):
                writer.write_rows(spec.name, source.blocks(spec.name), mapped=True)
                writer.settle(spec.name)
        if source.kind == "adapter":
            (work / SINGLE).rename(work / _ADAPTER)
    except OSError as error:
        raise TrntuneError(f"{work} cannot be written: {error.strerror}") from None


@contextmanager
def _one_thread() -> Generator[None, None, None]:
    """Copying is bound by memory: torch's threads would only wait for each other, long on a machine that does more."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def _write_texts(source: Source, work: Path, out: Path) -> tuple[str, ...]:
    """All but the tensors. Returns what was put right, since the model could not be saved again with it."""
    names = _MODEL if source.kind == "model" else _TOKENIZER
    for name in names:
        found = next((path for place in source.companions if (path := place / name).is_file()), None)
        if found is not None:
            shutil.copyfile(found, work / name)
    for name, text in source.texts.items():
        write_atomic(work / name, text)
    if source.kind == "adapter":
        return ()
    repair = repair_of(work, out)
    for name, changed in repaired_texts(work, repair).items():
        if changed is None:
            (work / name).unlink()
        else:
            write_atomic(work / name, changed)
    return (*repair.notes, *_stop_at_ends(work))


def _stop_at_ends(work: Path) -> tuple[str, ...]:
    if not (work / "tokenizer.json").is_file():
        return ()
    from trainer.models.generation import stop_at_ends  # imports transformers

    return stop_at_ends(work, write_atomic)
