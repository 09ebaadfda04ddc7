"""The tensors of weights that transformers doesn't read here, file by file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from launcher.errors import TrntuneError, UsageError, first
from launcher.model_dir.files import INDEX, PICKLE_INDEX, SINGLE, convertible, index_of, weights_fault
from postprocess.consolidate.shards import load_mapped, load_safetensors
from postprocess.safetensors.header import TensorSpec, dtype_code


@dataclass(frozen=True)
class Originals:
    """Files of tensors, of which no two have the same name."""

    files: tuple[Path, ...]

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor by its name. Raises TrntuneError for a name that two files have, and for what safetensors has no
        dtype for."""
        found: dict[str, TensorSpec] = {}
        for file in self.files:
            for name, tensor in load(file).items():
                if name in found:
                    raise TrntuneError(f"{file}: {name} is in another file, too; download the model again")
                found[name] = TensorSpec(name, dtype_code(tensor.dtype), tuple(tensor.shape))
        return found

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors, one file in memory at a time: mapped, or read where it is of before torch 1.6."""
        for file in self.files:
            yield from load(file).items()


def find(source: Path) -> Originals:
    """The weights of ``source``. Raises UsageError where there is nothing to convert, TrntuneError for lost files and
    for tensors that an index names and no file has."""
    if not source.is_dir():
        raise UsageError(f"{source} is not a directory: give one with pytorch_model.bin")
    for name in (SINGLE, INDEX):
        if (source / name).is_file() and weights_fault(source) is None:
            raise UsageError(f"{source} has {name} already: it can be used as it is")
    found = None if (source / INDEX).is_file() else convertible(source)
    if found is None or found.lost is not None:
        fault = weights_fault(source) or "it has neither pytorch_model.bin nor shards: there is nothing to convert"
        raise TrntuneError(f"{source}: {fault}")
    originals = Originals(found.files)
    lost = [name for name in index_of(source / PICKLE_INDEX) or () if name not in originals.specs]
    if lost and len(found.files) > 1:
        raise TrntuneError(f"{source}: {PICKLE_INDEX} names tensors that no file has: {first(lost)}")
    return originals


def load(file: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of one file by name. Raises TrntuneError for a damaged file, and for a pickle that holds anything
    else, of which nothing is run."""
    if file.suffix == ".safetensors":
        return load_safetensors(file)
    value = load_mapped(file, mapped=zipfile.is_zipfile(file))
    other = [str(key) for key, entry in value.items() if not _is_plain(key, entry)] if isinstance(value, dict) else [""]
    if other or not value:
        what = f"{first(other)} in it is no tensor" if any(other) else "it is no dict of tensors"
        raise TrntuneError(f"{file} holds no model's weights: {what}; take what transformers' save_pretrained wrote")
    return {name: tensor.detach() for name, tensor in value.items()}


def _is_plain(key: object, entry: object) -> bool:
    """Whether an entry is a name and a tensor whose elements lie in memory as they are."""
    return (
        isinstance(key, str)
        and isinstance(entry, torch.Tensor)
        and entry.layout is torch.strided
        and not entry.is_quantized
        and entry.device.type == "cpu"
    )
