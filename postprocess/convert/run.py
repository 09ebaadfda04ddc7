"""One conversion, from the first check to the rename."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from launcher.atomic_directory import staged
from launcher.errors import TrntuneError, UsageError
from launcher.io import write_durably
from launcher.model_dir.chat_templates import FOLDER
from launcher.model_dir.weights import check_not_quantized
from launcher.run_dir.provenance import installed_packages
from postprocess.convert.originals import Originals, find
from postprocess.merge.files import copy_side_files, is_side_file
from postprocess.merge.layout import ties_of
from postprocess.outputs import check_apart, check_room
from postprocess.safetensors.header import read_header
from postprocess.safetensors.shards import plan_shards, total_bytes
from postprocess.safetensors.writer import ShardedWriter, tensor_bytes
from trainer.probes.model import on_meta

RECORD = "convert.json"
_SLACK = 4_000_000  # the record, the index, and what directories take themselves
_CHUNK = 1 << 20


def convert(source: Path, out: Path, shard_bytes: int) -> dict[str, Any]:
    """Write the model of ``source`` to ``out``, whole or not at all; returns what convert.json says.

    Raises UsageError where there is nothing to convert or ``out`` is taken, TrntuneError for files that are lost,
    damaged, or hold anything else than a model's tensors.
    """
    originals = find(source)
    _refuse(source, out)
    left = _written_once(source, originals)
    specs = [spec for name, spec in originals.specs.items() if name not in left]
    files = [file for file in sorted(source.iterdir()) if is_side_file(file) or file.name == FOLDER]
    beside = sum(file.stat().st_size for path in files for file in [path, *path.rglob("*")])
    check_room(out, total_bytes(plan_shards(specs, shard_bytes)) + beside + _SLACK, "the converted model")
    record = {
        "from": {file.name: file.stat().st_size for file in originals.files},
        "tensors": len(specs),
        "bytes": sum(spec.nbytes for spec in specs),
        "left": left,
        "versions": installed_packages(("trntune", "torch", "safetensors")),
    }
    with staged(out) as directory:
        copy_side_files(files, directory, {})
        with ShardedWriter(directory, specs, shard_bytes) as writer:
            for name, tensor in originals.tensors():
                if name not in left:
                    writer.write(name, tensor)
        _prove(directory, originals, left)
        write_durably(directory / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def _refuse(source: Path, out: Path) -> None:
    """Raise what is known before tensors are looked at."""
    if not (source / "config.json").is_file():
        raise TrntuneError(f"{source} has no config.json: copy it from where the weights are from")
    check_not_quantized(source)
    check_apart(out, (source,))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists: remove it or give another directory")


def _written_once(source: Path, originals: Originals) -> dict[str, str]:
    """Names that are another one's parameter and have its bytes, with that name: transformers ties them again."""
    try:
        ties = ties_of(on_meta(source))
    except Exception:  # a family that transformers doesn't know, or one with code of its own: all is written
        return {}
    stored = [[name for name in names if name in originals.specs] for names in ties]
    wanted = {name for names in stored if len(names) > 1 for name in names}
    found = {name: tensor for name, tensor in originals.tensors() if name in wanted}
    return {
        name: names[0]
        for names in stored
        for name in names[1:]
        if originals.specs[name].shape == originals.specs[names[0]].shape and _equal(found[name], found[names[0]])
    }


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of the same shape have the same bytes."""
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and torch.equal(*bits)


def _prove(directory: Path, originals: Originals, left: dict[str, str]) -> None:
    """Raise TrntuneError unless every tensor on disk has its original's bytes, by what a reader of the files sees."""
    places = {
        name: (file, entry) for file in directory.glob("*.safetensors") for name, entry in read_header(file).items()
    }
    for name, tensor in originals.tensors():
        if name in left:
            continue
        file, entry = places[name]
        if (entry.dtype, entry.shape) != (originals.specs[name].dtype, tuple(tensor.shape)) or not _lies_there(
            tensor, file, entry.begin
        ):
            raise TrntuneError(f"{name} was written wrong: it differs from the original; check disk and memory")


def _lies_there(tensor: torch.Tensor, file: Path, begin: int) -> bool:
    """Whether a file has a tensor's bytes from ``begin`` on."""
    data = tensor_bytes(tensor)
    with file.open("rb") as stream:
        stream.seek(begin)
        parts = (data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK))
        return all(stream.read(len(part)) == bytes(part) for part in parts)
