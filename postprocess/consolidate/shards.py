"""The files of one (tp, pp) rank: which tensors they hold, and each of them memory-mapped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from launcher.errors import TrntuneError
from postprocess.consolidate.references import is_reference_file, read_references

_RANK_FILE = re.compile(r"dp_rank_(\d{2,})_tp_rank_(\d{2,})_pp_rank_(\d{2,})\.(?:pt|safetensors)")
SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class ShardTensor:
    """Shape and dtype of a rank's part of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


def rank_file(model_dir: Path, tp: int, pp: int) -> Path:
    """The file of a rank: optimum-neuron's, or ours, which is safetensors. The data-parallel rank is always 0: replicas
    are not saved."""
    stem = f"dp_rank_00_tp_rank_{tp:02d}_pp_rank_{pp:02d}"
    ours = model_dir / f"{stem}{SAFETENSORS}"
    return ours if ours.is_file() else model_dir / f"{stem}.pt"


def ranks_present(model_dir: Path) -> set[tuple[int, int]]:
    """The (tp, pp) ranks that have a file. Raises TrntuneError for files of a layout that is not understood."""
    found = set()
    for path in sorted([*model_dir.glob("*.pt"), *model_dir.glob(f"*{SAFETENSORS}")]):
        if path.name.endswith(".info.pt"):
            continue
        match = _RANK_FILE.fullmatch(path.name)
        if match is None or int(match[1]) != 0:
            raise TrntuneError(f"{path}: a rank that is not understood: expected dp_rank_00_tp_rank_XX_pp_rank_XX.pt")
        found.add((int(match[2]), int(match[3])))
    return found


class RankShard:
    """What one rank saved. ``tensors`` needs no weights to be read; ``load`` maps one tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_safetensors = path.suffix == SAFETENSORS
        self.is_xser = not self.is_safetensors and is_reference_file(path)

    @cached_property
    def tensors(self) -> dict[str, ShardTensor]:
        """Names to shapes and dtypes, in the order of the file. Raises TrntuneError for a file that is not whole."""
        if self.is_xser:
            return {name: self._described(name, tid) for name, tid in self._references.items()}
        return {name: ShardTensor(tuple(tensor.shape), tensor.dtype) for name, tensor in self._mapped.items()}

    @property
    def files(self) -> list[Path]:
        """The rank's own file and, with xser, those that belong to it."""
        if not self.is_xser:
            return [self.path]
        return [self.path, self._info_file, *(self._tensor_file(tid) for tid in self._references.values())]

    def missing_files(self) -> list[Path]:
        """Files that the rank's own file refers to and that do not exist."""
        return [path for path in self.files if not path.is_file()]

    def load(self, name: str) -> torch.Tensor:
        """The rank's part, memory-mapped. Raises TrntuneError when it is not what the checkpoint says it is."""
        if not self.is_xser:
            return self._mapped[name]
        path = self._tensor_file(self._references[name])
        tensor = load_mapped(path)
        if not isinstance(tensor, torch.Tensor):
            raise TrntuneError(f"{path} does not hold a tensor")
        if ShardTensor(tuple(tensor.shape), tensor.dtype) != self.tensors[name]:
            raise TrntuneError(f"{path} is not the tensor that {self._info_file.name} describes: copy both again")
        return tensor

    @cached_property
    def _references(self) -> dict[str, int]:
        return read_references(self.path)

    @cached_property
    def _mapped(self) -> dict[str, torch.Tensor]:
        value = load_safetensors(self.path) if self.is_safetensors else load_mapped(self.path)
        if not isinstance(value, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
            raise TrntuneError(f"{self.path} is not a dict of tensors")
        return dict(value)

    @cached_property
    def _info(self) -> dict[int, dict[str, Any]]:
        value = load_mapped(self._info_file)
        if not isinstance(value, dict):
            raise TrntuneError(f"{self._info_file} is not a dict of dtypes and shapes")
        return value

    @property
    def _info_file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.info.pt")

    def _tensor_file(self, tid: int) -> Path:
        return self.path.with_name(f"{self.path.name}.tensors") / f"tensor_{tid}.pt"

    def _described(self, name: str, tid: int) -> ShardTensor:
        try:
            stored = ShardTensor(tuple(self._info[tid]["shape"]), self._info[tid]["dtype"])
        except (KeyError, TypeError):
            raise TrntuneError(f"{self._info_file} does not describe {name}: copy it again") from None
        path = self._tensor_file(tid)
        if path.stat().st_size < stored.nbytes:
            raise TrntuneError(f"{path} is truncated: {path.stat().st_size} bytes for {stored.nbytes} of {name}")
        return stored


def load_mapped(path: Path, mapped: bool = True) -> Any:
    """torch.load of tensors only, memory-mapped: nothing is read before it is used. Raises TrntuneError.

    ``mapped`` False is for files of before torch 1.6, which are no zip archives.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except FileNotFoundError:
        raise TrntuneError(f"{path} is missing") from None
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, ValueError and more for a bad file
        reason = " ".join(str(error).split(".")[0].split())[:160]
        raise TrntuneError(f"{path} is truncated or holds more than tensors ({reason}): copy it again") from None


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, memory-mapped. Raises TrntuneError."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise TrntuneError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise TrntuneError(f"{path} is truncated or no safetensors file ({error}): copy it again") from None
