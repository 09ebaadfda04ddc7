"""The torch engine's checkpoints (checkpoints/step-N) as a Source: they are verified, completed, and put together where
each rank has written its part."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from launcher.errors import TrntuneError
from launcher.run_dir.layout import RunDir
from postprocess.consolidate.origin import stated_base
from postprocess.consolidate.source import Kind
from postprocess.safetensors.header import TensorSpec, read_header
from trainer.checkpoints.manifest import MANIFEST, InvalidCheckpointError, Manifest, verify
from trainer.checkpoints.parts import PARTS, Layout

_STEP = re.compile(r"step-(\d+)")
_WEIGHTS = {"model": "weights/model.safetensors", "adapter": "weights/adapter_model.safetensors"}
_CONFIGS = {"model": "config.json", "adapter": "adapter_config.json"}


def locate_checkpoint(source: Path) -> Path | None:
    """A step-N directory: ``source`` itself, or the newest below it or below its checkpoints/; None without one."""
    if _STEP.fullmatch(source.name) and (source / MANIFEST).is_file():
        return source
    for directory in (source, source / "checkpoints"):
        committed = [path.parent for path in directory.glob(f"step-*/{MANIFEST}")]
        found = [(int(match[1]), path) for path in committed if (match := _STEP.fullmatch(path.name))]
        if found:
            return max(found)[1]
    return None


def verified(directory: Path) -> Manifest:
    """The manifest of a checkpoint whose every byte is as it says. Raises TrntuneError for any other."""
    try:
        return verify(directory, contents=True)
    except InvalidCheckpointError as error:
        raise TrntuneError(f"{directory} can't be used: {error}") from None


def open_checkpoint(directory: Path, base: Path | None) -> TorchSource:
    """Raises TrntuneError for a checkpoint that is damaged or not of the torch engine."""
    manifest = verified(directory)
    layout = Layout()
    if PARTS in manifest.files:
        layout = Layout.read(json.loads((directory / PARTS).read_text(encoding="utf-8")))
    kinds: list[Kind] = [kind for kind in ("model", "adapter") if _files(kind, layout)[0][0] in manifest.files]
    if len(kinds) != 1:
        raise TrntuneError(f"{directory} has no weights of the torch engine")
    return TorchSource(directory.absolute(), manifest, kinds[0], base, layout)


def _files(kind: Kind, layout: Layout) -> list[list[str]]:
    return layout.files(_WEIGHTS[kind])


@dataclass(frozen=True)
class TorchSource:
    """A checkpoint whose every byte is as its manifest says."""

    directory: Path
    manifest: Manifest
    kind: Kind
    base: Path | None
    layout: Layout = field(default_factory=Layout)
    """how the weights lie over the files of the ranks"""

    @property
    def _parts(self) -> list[list[Path]]:
        """The files of a group of ranks, group by group."""
        return [[self.directory / name for name in group] for group in _files(self.kind, self.layout)]

    @property
    def files(self) -> Sequence[Path]:
        return [self.directory / MANIFEST]

    @cached_property
    def specs(self) -> list[TensorSpec]:
        groups = [[read_header(file) for file in group] for group in self._parts]
        found = []
        for name, entry in groups[0][0].items():
            shape = list(entry.shape)
            if shape and name not in self.layout.whole:
                shape[0] = sum(group[0][name].shape[0] for group in groups)
                if (axis := self.layout.axis(name)) is not None:
                    shape[axis] *= self.layout.tensor
            found.append(TensorSpec(name, entry.dtype, tuple(shape)))
        return found

    @cached_property
    def texts(self) -> dict[str, str]:
        name = _CONFIGS[self.kind]
        text = (self.directory / "weights" / name).read_text(encoding="utf-8")
        return {name: text, **(stated_base(self.manifest) if self.kind == "adapter" else {})}

    @cached_property
    def companions(self) -> list[Path]:
        """The base that the run was started from has the tokenizer: training doesn't change it."""
        run_dir = RunDir(self.directory.parent.parent)
        fetched = run_dir.stage_result("fetch") or {}
        known = [Path(fetched["model_dir"])] if "model_dir" in fetched else []
        return [*([self.base] if self.base else []), *known]

    def check(self, allow_diverged: bool) -> list[str]:
        """No weights are written twice: nothing can differ. Says what the result will lack."""
        if any((place / "tokenizer.json").is_file() for place in self.companions):
            return []
        return ["no tokenizer was found; --base names the directory of the base model"]

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        files = self._parts
        return self.layout.blocks(name, lambda group, rank: _read(files[group][rank], name))

    def describe(self) -> dict[str, Any]:
        return {"format": "trntune checkpoint", "step": self.manifest.step, "world": self.manifest.world.size}


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as stored:
        tensor: torch.Tensor = stored.get_tensor(name)
    return tensor
